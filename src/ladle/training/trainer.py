"""The Trainer that pretraining and KTO share: transformers.Trainer, with arguments from a recipe, a loss that must be finite,
our own progress, and a log without timings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ladle.errors import CheckFailed, UserError
from ladle.log import ProgressBar, get_logger, progress
from ladle.training.arguments import TrainerArguments

logger = get_logger(__name__)

CHECKPOINTS = "checkpoints"
LOG_NAME = "training_log.jsonl"
DEFAULTS: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "logging_steps": 10, "logging_nan_inf_filter": False}
"""Where Ladle's defaults differ from TrainingArguments': a non-finite loss is shown, progress is Ladle's own."""
_TIMINGS = frozenset("train_runtime train_samples_per_second train_steps_per_second train_tokens_per_second total_flos".split())

VOLATILE_FILES = (f"{CHECKPOINTS}/*/training_args.bin", f"{CHECKPOINTS}/*/trainer_state.json", "tensorboard/*")
"""Files whose bytes hold paths or times."""


def make_arguments(arguments: TrainerArguments, out: Path, **forced: Any) -> TrainingArguments:
    """Return the TrainingArguments of a stage; checkpoints go to `out/checkpoints`.

    Raises:
        UserError: transformers refuses a value.
    """
    values = DEFAULTS | arguments.values() | {"output_dir": str(out / CHECKPOINTS)} | forced
    if not torch.cuda.is_available():
        values.setdefault("dataloader_pin_memory", False)
    try:
        return TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"trainer arguments are not valid: {str(error).splitlines()[0]}", "mend the value in `trainer:`") from error


class LadleTrainer(Trainer):
    """transformers.Trainer that stops at the first loss that is not finite, before the optimizer has used it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_ProgressCallback())

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one microbatch.

        Raises:
            CheckFailed: its loss is NaN or infinite.
        """
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise CheckFailed(
                f"loss is {loss.item()} at step {self.state.global_step + 1}: nothing of this step was kept; "
                "lower trainer.learning_rate, or look at the data of this step"
            )
        return loss

    def write_log(self, path: Path) -> None:
        """Write what was logged, a JSON object a line, without timings: equal runs give equal files."""
        rows = ({key: value for key, value in entry.items() if key not in _TIMINGS} for entry in self.state.log_history)
        path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")


class _ProgressCallback(TrainerCallback):
    """Shows optimizer steps on Ladle's progress line."""

    def __init__(self) -> None:
        self.context: Any = None
        self.bar: ProgressBar | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.context = progress(state.max_steps, "training", "steps")
            self.bar = self.context.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.advance(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            shown = ", ".join(f"{key} {float(value):.4g}" for key, value in logs.items() if key != "epoch")
            logger.info("step %d/%d: %s", state.global_step, state.max_steps, shown)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.context is not None:
            self.context.__exit__(None, None, None)
