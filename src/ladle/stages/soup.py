"""Average models of one architecture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ladle.artifacts.step import StepInput, StepOutput
from ladle.checkup import Checkup, Finding, Shrinking, error, model_config_of_input, same_seconds
from ladle.models.before import parameters_of
from ladle.soups.config import SoupConfig
from ladle.stage import Stage, deferred
from ladle.training.before import STEPS, num_saved, save_every
from ladle.training.config import TrainingConfig

run = deferred("ladle.soups.make:run")


def check(check: Checkup) -> Iterator[Finding]:
    """Yield whether members are saved in one dtype, and a training that gives checkpoints saves enough of them."""
    dtypes = {_dtype_of(item) for item in check.step.inputs["members"]} - {None}
    if len(dtypes) > 1 and not check.config.allow_dtypes:
        message = (
            f"members are saved in different dtypes ({', '.join(sorted(map(str, dtypes)))}), which the soup refuses"
        )
        fix = "set soup.allow_dtypes=true to average in the wider one, or save them in one (base.dtype, pretrain.dtype)"
        yield error("model", "soup.members", message, fix)
    for item in check.step.inputs["members"]:
        training = item.step if isinstance(item, StepOutput) and item.glob else None
        if training is None or not isinstance(training.config, TrainingConfig):
            continue
        steps, key = training.config.max_steps, training.section
        if steps is None or training.config.trainer.get("save_strategy") != "steps":
            continue
        saved, every, last = num_saved(training.config, steps), save_every(training.config, steps), check.config.last
        if saved == 0:
            message = f"a checkpoint every {every:g} steps, of {steps:,}: the soup has only the last checkpoint"
            fix = f"set {key}.trainer.save_steps={max(1, steps // 5)}"
            yield error("arguments", f"{key}.trainer.save_steps", message, fix)
        elif check.config.method == "last_n" and last is not None and saved < last:
            message = f"the last {last} checkpoints, and the training saves {saved}"
            yield error("arguments", "soup.last", message, f"set soup.last={saved}, or save more often")


def _dtype_of(item: StepInput) -> str | None:
    """Return the dtype that a member is saved in; None if it is not known before a run."""
    config = item.step.config if isinstance(item, StepOutput) else None
    if isinstance(config, TrainingConfig) and config.distributed == "zero2" and config.trainer.get("bf16"):
        return "bfloat16"
    fields = model_config_of_input(item) or {}
    return getattr(config, "dtype", None) or fields.get("dtype") or fields.get("torch_dtype")


def bytes_written(check: Checkup) -> int:
    """Return the size of the averaged weights."""
    return (4 if check.config.dtype == "float32" else 2) * (parameters_of(check) or 0)


def shrink(config: SoupConfig, shrinking: Shrinking) -> SoupConfig:
    """Return a soup of as many checkpoints as a rehearsed training leaves."""
    changes: dict[str, Any] = {} if config.last is None else {"last": min(config.last, STEPS)}
    if config.weights:
        shrinking.say("uniform, since the number of checkpoints differs")
        changes |= {"weights": None, "method": "uniform"}
    return config.model_copy(update=changes)


STAGE = Stage(
    "soup",
    run,
    version=3,
    wants_gpus=lambda config: int(config.select != "none"),
    section=SoupConfig,
    check=check,
    bytes_written=bytes_written,
    shrink=shrink,
    extrapolate=same_seconds,
)
