"""Align a policy by KTO: `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ladle.checkup import Checkup, Estimate, Finding, Measured, Shrinking, error
from ladle.data.config import EVERY_SPLIT
from ladle.kto.config import KtoConfig
from ladle.models.before import check_positions
from ladle.stage import Stage, deferred
from ladle.training.before import (
    check_training,
    extrapolate_training,
    rows_of_a_pass,
    shrink_training,
    training_bytes,
)
from ladle.training.config import TrainerArguments

ROWS_ON_CPU = 2
"""Rows of a microbatch in a rehearsal without a GPU: each prompt is paired with another's completion."""

run = deferred("ladle.kto.train:run")


def check(check: Checkup) -> Iterator[Finding]:
    """Yield what would stop the alignment."""
    config: KtoConfig = check.config

    def prepare(model: Any) -> Any:
        from ladle.kto.loss import prepare_policy

        return prepare_policy(model, bool(config.trainer.get("gradient_checkpointing")))

    yield from check_training(check, config.max_length, None, prepare, rows_of_a_pass(config))
    yield from check_positions(check, f"{check.key}.max_length", config.max_length)
    if config.peft is not None:
        yield from check.needs("peft", "pip install 'ladle[peft]', or leave kto.peft out")
    if config.quantization is not None:
        yield from check.needs("bitsandbytes", "pip install 'ladle[quantization]', or leave kto.quantization out")
    reference = check.parent("reference")
    preference = Checkup(reference, check.machine).parent("preference") if reference is not None else None
    if config.trainer.get("eval_strategy") != "no" and preference is not None:
        sources: Any = preference.config
        splits = {source.split if source.split == EVERY_SPLIT else source.into for source in sources.data}
        if not splits & {config.eval_split, EVERY_SPLIT}:
            message = f"it evaluates on the split {config.eval_split!r}, and no source of {check.key}.data goes into it"
            fix = f"add `into: {config.eval_split}` to a source, or leave eval_strategy out"
            yield error("arguments", f"{check.key}.trainer.eval_strategy", message, fix)


def bytes_written(check: Checkup) -> int:
    """Return what its checkpoints take."""
    return training_bytes(check, None)


def shrink(config: KtoConfig, shrinking: Shrinking) -> KtoConfig:
    """Return one round of two steps, without a gate."""
    small = shrink_training(config, shrinking, config.max_length, ROWS_ON_CPU)
    values = {name: value for name, value in small.trainer.values().items() if name != "eval_steps"}
    values["eval_strategy"] = "no"
    if config.trainer.get("save_strategy") == "no":
        values = {name: value for name, value in values.items() if name not in ("save_steps", "save_total_limit")}
        values["save_strategy"] = "no"
    changes = {"trainer": TrainerArguments(**values), "allow_single_label": True, "rounds": 1, "gate": None}
    return small.model_copy(
        update={name: value for name, value in changes.items() if name in type(config).model_fields}
    )


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return what all its examples take, with a forward pass for z0; rows are shorter, so it is an upper bound."""
    config: KtoConfig = check.config
    return extrapolate_training(check, measured, config.max_length, None, forward_passes=int(config.estimates_kl))


STAGE = Stage(
    "kto",
    run,
    version=6,
    wants_gpus=True,
    resumes_from="checkpoints/checkpoint-*",
    section=KtoConfig,
    check=check,
    bytes_written=bytes_written,
    shrink=shrink,
    extrapolate=extrapolate,
)
