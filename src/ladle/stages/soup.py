"""Average models of one architecture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladle.artifacts.step import StepOutput
from ladle.checkup import Checkup, Estimate, Finding, Measured, Shrinking, error
from ladle.models.before import parameters_of
from ladle.soups.config import SoupConfig
from ladle.stage import Inputs, Stage, StageResult
from ladle.training.before import STEPS, num_saved, save_every
from ladle.training.config import TrainingConfig


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.soups.make.run`."""
    from ladle.soups.make import run

    return run(config, inputs, out)


def check(check: Checkup) -> Iterator[Finding]:
    """Yield whether a training that the soup takes checkpoints of saves enough of them."""
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


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return the rehearsal's own time, for the weights are the true ones."""
    return Estimate(measured.seconds)


STAGE = Stage(
    "soup",
    run,
    version=2,
    section=SoupConfig,
    check=check,
    bytes_written=bytes_written,
    shrink=shrink,
    extrapolate=extrapolate,
)
