"""Fine-tune on the answers of conversations: `checkpoints/`, the final model in `model/`, the log beside them."""

from __future__ import annotations

from collections.abc import Iterator

from ladle.checkup import Checkup, Estimate, Finding, Measured, Shrinking
from ladle.data.config import SftDataConfig
from ladle.stage import Stage, deferred
from ladle.training.before import check_packed_training, extrapolate_training, shrink_training, training_bytes
from ladle.training.config import SftConfig

ROWS_ON_CPU = 1
"""Rows of a microbatch in a rehearsal without a GPU."""

run = deferred("ladle.training.pretrain:run")


def _length(check: Checkup | None) -> int:
    """Return the tokens of a row, 0 if they are not known."""
    step = check.parent("mixture") if check is not None else None
    return step.config.max_length if step is not None and isinstance(step.config, SftDataConfig) else 0


def check(check: Checkup) -> Iterator[Finding]:
    """Yield what would stop the training."""
    yield from check_packed_training(check, _length(check), None)


def bytes_written(check: Checkup) -> int:
    """Return what its checkpoints take."""
    return training_bytes(check, None)


def shrink(config: SftConfig, shrinking: Shrinking) -> SftConfig:
    """Return a training of two steps."""
    return shrink_training(config, shrinking, _length(shrinking.true), ROWS_ON_CPU)


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return what all its rows take."""
    return extrapolate_training(check, measured, _length(check), None)


STAGE = Stage(
    "sft",
    run,
    volatile=("training_state/*",),  # kept on request
    wants_gpus=True,
    resumes_from="checkpoints/checkpoint-*",
    section=SftConfig,
    check=check,
    bytes_written=bytes_written,
    shrink=shrink,
    extrapolate=extrapolate,
)
