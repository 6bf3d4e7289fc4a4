"""Is there room for what each stage will write, and may it be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladle.doctor.finding import Finding, error, ok, warning
from ladle.doctor.references import mixes_of
from ladle.doctor.trainings import Training, trainings_of
from ladle.recipe import BaseConfig, Recipe

FAMILY = "disk"
GIGABYTE, MEGABYTE = 10**9, 10**6
BYTES_OF_DTYPE = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAM_BYTES = 8
"""Two float32 numbers a weight; in a dtype of two bytes, half of that."""
TIGHT = 0.9


def check_disk(
    recipe: Recipe, root: Path, parameters: int | None, done: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Yield whether the run's folder may be written and holds what the unfinished stages will leave.

    Args:
        recipe: the recipe.
        root: where runs are kept.
        parameters: weights of the base, or None where they are not known.
        done: names of finished steps, which need no more room.
    """
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield error(FAMILY, "root", f"{place} cannot be written", "choose another folder with --root")
        return
    needs = {name: size for name, size in bytes_of_stages(recipe, parameters).items() if name not in done}
    free, needed = shutil.disk_usage(place).free, sum(needs.values())
    listed = ", ".join(f"{name} {_readable(size)}" for name, size in needs.items() if size >= needed / 100)
    message = (
        f"the stages write about {_readable(needed)} ({listed or 'little each'}); {place} has {_readable(free)} free"
    )
    fix = "free space, choose another disk with --root, or keep fewer checkpoints (save_total_limit, keep_models)"
    if needed > free:
        yield error(FAMILY, "space", message, fix)
    elif needed > TIGHT * free:
        yield warning(FAMILY, "space", message, fix)
    else:
        yield ok(FAMILY, "space", message)


def _readable(size: int) -> str:
    return f"{size / GIGABYTE:,.2f} GB" if size >= GIGABYTE / 10 else f"{size / MEGABYTE:,.1f} MB"


def bytes_of_stages(recipe: Recipe, parameters: int | None) -> dict[str, int]:
    """Return about how much each stage leaves or needs at once, in bytes."""
    sizes: dict[str, int] = {}
    for key, mix in mixes_of(recipe):
        tokens = mix.budget.tokens or (mix.budget.sequences or 0) * mix.sequence_length
        sizes[key.replace(".", "/")] = 4 * tokens  # ids of more than 65,536 tokens take four bytes
    if parameters is None or recipe.base is None:
        return sizes
    base = 2 if _base_dtype(recipe.base) in ("bfloat16", "float16") else 4
    sizes["base"] = base * parameters
    for training in trainings_of(recipe):
        sizes[training.key.replace(".", "/")] = _training_bytes(training, parameters)
    if recipe.soup is not None:
        sizes["soup"] = (4 if recipe.soup.dtype == "float32" else base) * parameters
    if recipe.rollout is not None and recipe.alignments:
        sizes["rollout"] = _rollout_bytes(recipe)
    return sizes


def _base_dtype(base: BaseConfig) -> str:
    init = base.init
    return str(base.dtype or (init.dtype if init is not None else "bfloat16"))


def _training_bytes(training: Training, parameters: int) -> int:
    """Return the checkpoints of a training at their most: whole ones, models alone, one being written, the result."""
    weight = BYTES_OF_DTYPE[training.config.dtype] * parameters
    arguments, steps = training.arguments, training.steps
    if str(arguments.get("save_strategy", "steps")) == "no":
        return weight
    optimizer = ADAM_BYTES * parameters * BYTES_OF_DTYPE[training.config.dtype] // 4
    every = float(arguments.get("save_steps", 500))
    saved = int((steps or 1) // (every if every >= 1 else every * (steps or 1))) if steps else 1
    whole = min(saved, int(arguments.get("save_total_limit") or saved)) + 1
    alone = max(0, saved - whole) if training.config.keep_models is None else training.config.keep_models
    return whole * (weight + optimizer) + alone * weight + weight


def _rollout_bytes(recipe: Recipe) -> int:
    rollout = recipe.rollout
    assert rollout is not None  # asked only where there is one
    return (rollout.prompts.limit or 10_000) * rollout.samples * (rollout.max_new_tokens * 8 + 1000)


def base_parameters(config: dict[str, Any] | None) -> int | None:
    """Return the number of weights of a model with these config fields."""
    if config is None:
        return None
    from ladle.training.memory import count_parameters

    return count_parameters(config)
