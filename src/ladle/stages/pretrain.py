"""Continue pretraining on a mixture: `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ladle.checkup import Checkup, Estimate, Finding, Measured, Shrinking, error
from ladle.data.config import MixConfig
from ladle.stage import Stage, deferred
from ladle.training.before import check_packed_training, extrapolate_training, shrink_training, training_bytes
from ladle.training.config import PretrainConfig

ROWS_ON_CPU = 1
"""Rows of a microbatch in a rehearsal without a GPU."""

run = deferred("ladle.training.pretrain:run")


def _mixture(check: Checkup | None) -> MixConfig | None:
    step = check.parent("mixture") if check is not None else None
    return step.config if step is not None and isinstance(step.config, MixConfig) else None


def _size(check: Checkup | None) -> tuple[int, int | None]:
    """Return the tokens of a row of the mixture, 0 if they are not known, and its rows, None if they are not."""
    mix = _mixture(check)
    if mix is None:
        return 0, None
    return mix.sequence_length, mix.budget.sequences or math.ceil((mix.budget.tokens or 0) / mix.sequence_length)


def check(check: Checkup) -> Iterator[Finding]:
    """Yield what would stop the training."""
    yield from check_packed_training(check, *_size(check))
    mix = _mixture(check)
    if check.config.trainer.get("eval_strategy") != "no" and mix is not None and mix.validation is None:
        section = check.key.replace("pretrain", "mix")
        message = "it evaluates on held-out rows, and the mixture holds none out"
        fix = f"add {section}.validation: {{sequences: 64}}, or leave eval_strategy out"
        yield error("arguments", f"{check.key}.trainer.eval_strategy", message, fix)


def bytes_written(check: Checkup) -> int:
    """Return what its checkpoints take."""
    return training_bytes(check, _size(check)[1])


def shrink(config: PretrainConfig, shrinking: Shrinking) -> PretrainConfig:
    """Return a training of two steps."""
    return shrink_training(config, shrinking, _size(shrinking.true)[0], ROWS_ON_CPU)


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return what all its rows take."""
    return extrapolate_training(check, measured, *_size(check))


STAGE = Stage(
    "pretrain",
    run,
    version=2,
    volatile=("training_state/*",),  # kept on request
    wants_gpus=True,
    resumes_from="checkpoints/checkpoint-*",
    section=PretrainConfig,
    check=check,
    bytes_written=bytes_written,
    shrink=shrink,
    extrapolate=extrapolate,
)
