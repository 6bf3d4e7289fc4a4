"""Trackers: one run a recipe, its figures by step: `pretrain/loss`, `evaluate/kto/gsm8k`, `report/path`.

TensorBoard, Weights & Biases and trackio are served here. transformers' other integrations get a training's figures by
its own callbacks, each training as a run of its own.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from ladle.artifacts.build import TrackedRun
from ladle.artifacts.record import UNFINISHED_NAME
from ladle.errors import UserError

HOSTED = ("wandb", "trackio")
"""Packages with `init`, `config`, `log` and `finish`."""
Log = Callable[[Mapping[str, Any], int], None]
SERVED = ("tensorboard", *HOSTED)


@contextmanager
def open_trackers(trackers: Sequence[str], run: TrackedRun, step: str) -> Iterator[Log]:
    """Give a function that logs a step's figures at a training step to those trackers that are served here.

    Numbers become curves; what else there is, settings and paths, becomes TensorBoard's text and the others' config.

    Raises:
        UserError: a tracker does not let the run begin; most often nobody is logged in.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(_open_board(run))] if "tensorboard" in trackers else []
        hosts = [_open_hosted(name, run, stack) for name in HOSTED if name in trackers]

        def log(figures: Mapping[str, Any], at: int) -> None:
            named = {f"{step}/{name}": value for name, value in figures.items()}
            numbers = {name: value for name, value in named.items() if isinstance(value, (int, float))}
            facts = {name: value for name, value in named.items() if name not in numbers}
            for writer in writers:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, at)
                for name, value in facts.items():
                    writer.add_text(name, value if isinstance(value, str) else json.dumps(value), at)
                writer.flush()
            for host in hosts:
                host.config.update(facts)
                host.log(numbers | {f"{step}/step": at})

        yield log


def _open_board(run: TrackedRun) -> Any:
    from tensorboardX import SummaryWriter

    # its files are named by the second alone, and steps may end within one
    return SummaryWriter(str(Path(run.folder) / "tensorboard" / run.name), filename_suffix=f".{time.time_ns()}")


def _open_hosted(name: str, run: TrackedRun, stack: ExitStack) -> Any:
    """Begin the run of a hosted tracker, or go on with it, and end it with the stack."""
    host: Any = importlib.import_module(name)
    settings = {"id": run.name, "dir": run.folder} if name == "wandb" else {}
    try:
        host.init(project=run.project, name=run.name, resume="allow", **settings)
    except getattr(host, "UsageError", ()) as error:
        raise UserError(f"trainer.report_to={name}: {error}", "run `wandb login`, or set WANDB_MODE=offline") from error
    stack.callback(host.finish)
    return host


class _TrackTraining(TrainerCallback):
    """Logs a training by what `open_trackers` opens."""

    def __init__(self, opened: AbstractContextManager[Log]) -> None:
        self.opened, self.stack = opened, ExitStack()

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the trackers."""
        self.log = self.stack.enter_context(self.opened)
        self.log({"arguments": args.to_dict()}, 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log a line of the training's log."""
        self.log(logs, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the trackers."""
        self.stack.close()


def make_callbacks(arguments: TrainingArguments, out: Path) -> list[TrainerCallback]:
    """Return what logs a training to each tracker of `report_to`: as the step, and to the run, that its unfinished
    folder names."""
    trackers, file = list(arguments.report_to or ()), out / UNFINISHED_NAME
    others = get_reporting_integration_callbacks([name for name in trackers if name not in SERVED])
    callbacks: list[TrainerCallback] = [callback() for callback in others]
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if said.get("tracked") and len(others) < len(trackers):
        callbacks.append(_TrackTraining(open_trackers(trackers, TrackedRun(*said["tracked"]), said["name"])))
    return callbacks
