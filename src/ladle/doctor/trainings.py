"""The trainings of a recipe, seen alike: where each stands, its rows, its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ladle.data.config import MixConfig
from ladle.doctor.references import alignments_of
from ladle.recipe import Recipe
from ladle.training.config import TrainingConfig

DEFAULT_BATCH, DEFAULT_EPOCHS = 8, 3.0
"""TrainingArguments' own defaults."""


@dataclass(frozen=True)
class Training:
    """One training of a recipe.

    Attributes:
        key: its section.
        config: the section.
        length: tokens of its longest row.
        rows: rows of its data, or None where that is not known before the run.
    """

    key: str
    config: TrainingConfig
    length: int
    rows: int | None

    @property
    def arguments(self) -> dict[str, Any]:
        """The TrainingArguments that the recipe sets."""
        return self.config.trainer.values()

    @property
    def batch_size(self) -> int:
        """Rows of a microbatch."""
        return int(self.arguments.get("per_device_train_batch_size", DEFAULT_BATCH))

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, over all processes of one machine."""
        return self.batch_size * int(self.arguments.get("gradient_accumulation_steps", 1)) * self.config.processes

    @property
    def steps(self) -> int | None:
        """Optimizer steps, or None where they depend on rows not known yet."""
        if int(self.arguments.get("max_steps", -1)) > 0:
            return int(self.arguments["max_steps"])
        if self.rows is None:
            return None
        epochs = float(self.arguments.get("num_train_epochs", DEFAULT_EPOCHS))
        return math.ceil(epochs * math.ceil(self.rows / self.rows_per_step))


def trainings_of(recipe: Recipe) -> list[Training]:
    """Return the trainings of a recipe, in its order."""
    base = recipe.base
    found = [
        Training(key, config, mix.sequence_length if mix else 0, _rows(mix))
        for key, config, mix in (
            ("base.pretrain", base.pretrain if base else None, base.mix if base else None),
            ("pretrain", recipe.pretrain, recipe.mix),
        )
        if config is not None
    ]
    return [*found, *(Training(key, section, section.max_length, None) for key, section in alignments_of(recipe))]


def _rows(mix: MixConfig | None) -> int | None:
    if mix is None:
        return None
    return mix.budget.sequences or math.ceil((mix.budget.tokens or 0) / mix.sequence_length)
