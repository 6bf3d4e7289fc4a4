"""From the rehearsal's times to the true run's: each stage's own unit of work, and a price.

A training's time is that between two steps, times its rows. Of other stages only the whole is known, starting and
loading with it, and all of it is taken to grow with the units, so the result is an upper bound. Generation is counted
in new tokens at the rehearsal's batch, which a true run's larger one beats. The devices are those of the rehearsal;
without a GPU among them a training's cost is reckoned from its FLOPs (`reckon`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from ladle.artifacts.step import Step
from ladle.doctor.disk import base_parameters, bytes_of_stages
from ladle.doctor.references import alignments_of
from ladle.doctor.trainings import Training, trainings_of
from ladle.recipe import Recipe
from ladle.rehearsal.reckon import gpu_hours
from ladle.rehearsal.rehearse import Rehearsal, Rehearsed

_STEP = re.compile(r"step (\d+)/(\d+)")
_CHARS_A_RESUME = "going on from checkpoint-"
DEFAULT_ITEMS = {"aime24": 30, "amc23": 40, "gsm8k": 1319, "math500": 500, "minerva_math": 272, "olympiadbench": 675}
"""Items of the built-in benchmarks, as published."""


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        stage: the step.
        seconds: what its rehearsal took.
        peak_bytes: its peak of main memory.
        gpu_peak_bytes: its peak of GPU memory, over all GPUs.
        full_seconds: about what the true step takes on these devices; None where nothing tells.
        full_bytes: about what the true step writes.
        gpus: GPUs that it keeps busy.
        cost: full time x GPUs x price; reckoned for a training without GPUs, None for other stages without.
        note: what was shown besides, such as a resume after a kill.
    """

    stage: str
    seconds: float
    peak_bytes: int
    gpu_peak_bytes: int
    full_seconds: float | None
    full_bytes: int
    gpus: int
    cost: float | None
    note: str


def table(
    rehearsal: Rehearsal, price_per_gpu_hour: float, gpus_of_machine: int, config: dict[str, Any] | None
) -> list[Line]:
    """Return the rehearsal's table, a line a step.

    Args:
        rehearsal: what was run.
        price_per_gpu_hour: in any currency.
        gpus_of_machine: GPUs that it was run on.
        config: fields of the base's config.json; None where they are not known.
    """
    sizes = bytes_of_stages(rehearsal.recipe, base_parameters(config))
    lines = [_line(one, rehearsal.recipe, price_per_gpu_hour, gpus_of_machine, sizes) for one in rehearsal.steps]
    if gpus_of_machine or config is None:
        return lines
    trainings = [_training_of(one.step, rehearsal.recipe) for one in rehearsal.steps]
    hours = [gpu_hours(*found, config) if found else None for found in trainings]
    return [
        line if own is None else replace(line, cost=own * price_per_gpu_hour)
        for line, own in zip(lines, hours, strict=True)
    ]


def _line(done: Rehearsed, recipe: Recipe, price: float, machine_gpus: int, sizes: dict[str, int]) -> Line:
    step = done.step
    full = _full_seconds(done, recipe)
    busy = min(machine_gpus, _gpus(step.config)) if step.stage.name in ("pretrain", "kto", "rollout", "evaluate") else 0
    return Line(
        stage=step.name,
        seconds=done.seconds,
        peak_bytes=done.peak_bytes,
        gpu_peak_bytes=done.gpu_peak_bytes,
        full_seconds=full,
        full_bytes=sizes.get(step.name, sizes.get(_section(step.name), done.size_bytes)),
        gpus=busy,
        cost=full / 3600 * busy * price if full is not None and busy else None,
        note="killed after a checkpoint, went on" if done.resumed else "",
    )


def _training_of(step: Step, recipe: Recipe) -> tuple[Training, int] | None:
    """Return the training that a step of the rehearsal stands for, and how often the recipe runs it; None for others.

    The rehearsal runs one round of each alignment, so that the number in a step's name is the alignment's.
    """
    if step.stage.name not in ("pretrain", "kto"):
        return None
    key, times = "base.pretrain" if step.name == "base" else step.name, 1
    if step.stage.name == "kto":
        alignments = alignments_of(recipe)
        key, section = alignments[-1 if step.name == "kto" else int(step.name.rpartition("-")[2]) - 1]
        times = section.rounds
    return next(one for one in trainings_of(recipe) if one.key == key), times


def _section(name: str) -> str:
    return {"base": "base/pretrain"}.get(name, name)


def _gpus(config: Any) -> int:
    return int(getattr(config, "processes", None) or getattr(config, "workers", None) or 1)


def _full_seconds(done: Rehearsed, recipe: Recipe) -> float | None:
    stage, name = done.step.stage.name, done.step.name
    if found := _training_of(done.step, recipe):
        return _training_seconds(done, *found)
    if stage == "mix":
        mix = recipe.mix if name == "mix" else recipe.base.mix if recipe.base else None
        if mix is None:
            return None
        wanted = mix.budget.tokens or (mix.budget.sequences or 0) * mix.sequence_length
        return done.record["timings"]["seconds"] * wanted / done.record["counters"]["tokens_in"]
    if stage == "rollout" and recipe.rollout is not None and recipe.rollout.prompts.limit is not None:
        rounds = sum(one.rounds for one in recipe.alignments if one.takes_rollouts) or 1
        wanted = recipe.rollout.prompts.limit * recipe.rollout.samples * recipe.rollout.max_new_tokens * rounds
        config: Any = done.step.config
        return done.seconds * wanted / (config.prompts.limit * config.samples * config.max_new_tokens)
    if stage == "evaluate" and recipe.evaluate is not None:
        return _evaluation_seconds(done, recipe)
    return done.seconds if stage in ("fetch", "soup", "prefer", "report") else None


def _evaluation_seconds(done: Rehearsed, recipe: Recipe) -> float | None:
    evaluate = recipe.evaluate
    assert evaluate is not None  # asked only where there is one
    items = [min(evaluate.limit or 10**9, DEFAULT_ITEMS.get(one.name, 0)) for one in evaluate.benchmarks]
    if 0 in items:
        return None
    config: Any = done.step.config
    small = len(items) * config.limit * config.sampling.samples * config.sampling.max_new_tokens
    return done.seconds * sum(items) * evaluate.sampling.samples * evaluate.sampling.max_new_tokens / small


def _training_seconds(done: Rehearsed, training: Training, times: int) -> float | None:
    """Return the true training's time: the rehearsal's seconds a row, times the rows of all steps."""
    seconds = _seconds_of_a_step(done)
    if training.steps is None or seconds is None:
        return None
    config: Any = done.step.config
    rows = config.trainer.values().get("per_device_train_batch_size", 8) * config.processes
    return seconds / rows * training.rows_per_step * training.steps * times


def _seconds_of_a_step(done: Rehearsed) -> float | None:
    """Return the seconds between two steps' log lines, or between resuming and the first step, its save included."""
    lines = done.runs[-1].lines
    steps = [seconds for seconds, line in lines if _STEP.search(line)]
    if len(steps) >= 2:
        return (steps[-1] - steps[0]) / (len(steps) - 1)
    resumed = [seconds for seconds, line in lines if _CHARS_A_RESUME in line]
    return steps[0] - resumed[-1] if steps and resumed else None
