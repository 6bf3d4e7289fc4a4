"""Are the TrainingArguments what transformers takes, and do steps, saves and rows add up."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from ladle.data.config import EVERY_SPLIT
from ladle.doctor.finding import Finding, Level, error, guarded, ok, warning
from ladle.doctor.trainings import Training
from ladle.recipe import KtoSection, Recipe

FAMILY = "arguments"
DEFAULT_SAVE_STEPS = 500
HIGH_LEARNING_RATE = 0.1
MOST_PASSES = 4.0
"""Up to four passes over the same text cost little (arXiv 2305.16264)."""


def check_arguments(recipe: Recipe, trainings: list[Training]) -> Iterator[Finding]:
    """Yield a finding for each training's arguments."""
    for training in trainings:
        found = list(guarded(FAMILY, f"{training.key}.trainer", lambda one=training: _check_values(one)))
        yield from found
        if all(finding.level is Level.OK for finding in found):  # so that they can be reckoned with
            yield from _check_steps(recipe, training)
            yield from _check_rows(training)
            yield from _check_learning_rate(training)
            yield from _check_held_out(recipe, training)


def _check_values(training: Training) -> Iterator[Finding]:
    """Let the stage itself look at the values, on a CPU: what hangs on the device is looked at elsewhere."""
    from ladle.training.arguments import check_arguments

    ours: dict[str, Any] = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None}
    if training.arguments.get("bf16") and training.arguments.get("fp16"):
        yield error(
            FAMILY, f"{training.key}.trainer", "bf16 and fp16 are both set", "keep one: bf16 on Ampere and later"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        check_arguments(training.config, training.arguments | ours | {"output_dir": folder})
    yield ok(FAMILY, f"{training.key}.trainer", f"{len(training.arguments)} arguments that transformers takes")


def _check_steps(recipe: Recipe, training: Training) -> Iterator[Finding]:
    key, arguments, steps = f"{training.key}.trainer", training.arguments, training.steps
    if steps is None:
        return
    strategy = str(arguments.get("save_strategy", "steps"))
    every = float(arguments.get("save_steps", DEFAULT_SAVE_STEPS))
    every = every * steps if every < 1 else every
    makes_soup = training.key == "pretrain" and recipe.soup is not None and "checkpoints" in recipe.soup.members
    saved = int(steps // every) if strategy == "steps" else 0
    if strategy == "steps" and saved == 0:
        level = error if makes_soup else warning
        why = "the soup has only the last checkpoint" if makes_soup else "a stopped run would start again from nothing"
        yield level(
            FAMILY,
            f"{key}.save_steps",
            f"a checkpoint every {every:g} steps, of {steps:,}: {why}",
            f"set {key}.save_steps={max(1, steps // 5)}",
        )
    last = recipe.soup.last if makes_soup and recipe.soup is not None and recipe.soup.method == "last_n" else None
    if last is not None and 0 < saved < last:
        yield error(
            FAMILY,
            "soup.last",
            f"the last {last} checkpoints, and the training saves {saved}",
            f"set soup.last={saved}, or save more often",
        )
    warmup = float(arguments.get("warmup_steps", 0))
    if warmup >= 1 and warmup >= steps:
        yield warning(
            FAMILY,
            f"{key}.warmup_steps",
            f"{warmup:g} steps of warm-up, of {steps:,} in all: the learning rate never gets there",
            f"set {key}.warmup_steps=0.1",
        )


def _check_rows(training: Training) -> Iterator[Finding]:
    if training.rows is None or training.steps is None:
        return
    passes = training.steps * training.rows_per_step / training.rows
    key = f"{training.key}.trainer"
    if training.rows < training.rows_per_step:
        yield error(
            FAMILY,
            key,
            f"a step takes {training.rows_per_step:,} rows, and the mixture has {training.rows:,}",
            f"lower {key}.gradient_accumulation_steps or per_device_train_batch_size, or mix more",
        )
    elif passes > MOST_PASSES and int(training.arguments.get("max_steps", -1)) > 0:
        yield warning(
            FAMILY,
            f"{key}.max_steps",
            f"{training.steps:,} steps of {training.rows_per_step:,} rows are "
            f"{passes:.1f} passes over the mixture's {training.rows:,}",
            "raise the mix budget, or lower max_steps",
        )


def _check_held_out(recipe: Recipe, training: Training) -> Iterator[Finding]:
    """Yield an error where a training is to evaluate on rows that nothing makes."""
    if str(training.arguments.get("eval_strategy", "no")) == "no":
        return
    key = f"{training.key}.trainer.eval_strategy"
    if isinstance(training.config, KtoSection):
        splits = {source.split if source.split == EVERY_SPLIT else source.into for source in training.config.data}
        wanted = training.config.eval_split
        if not splits & {wanted, EVERY_SPLIT}:
            yield error(
                FAMILY,
                key,
                f"it evaluates on the split {wanted!r}, and no source of {training.key}.data goes into it",
                f"add `into: {wanted}` to a source, or leave eval_strategy out",
            )
        return
    mix = recipe.mix if training.key == "pretrain" else recipe.base.mix if recipe.base else None
    if mix is not None and mix.validation is None:
        section = training.key.replace("pretrain", "mix")
        yield error(
            FAMILY,
            key,
            "it evaluates on held-out rows, and the mixture holds none out",
            f"add {section}.validation: {{sequences: 64}}, or leave eval_strategy out",
        )


def _check_learning_rate(training: Training) -> Iterator[Finding]:
    rate = float(training.arguments.get("learning_rate", 5e-5))
    if not 0 < rate < HIGH_LEARNING_RATE:
        yield error(
            FAMILY,
            f"{training.key}.trainer.learning_rate",
            f"the learning rate is {rate:g}",
            "set one between 1e-7 and 1e-2",
        )
