"""Recipe sections for getting datasets: what stands under `datasets:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ladle.config import Config, location


class FetchDatasetConfig(Config):
    """Bring a dataset of the Hub to disk, every split it has."""

    kind: Literal["dataset"] = "dataset"
    dataset: str = location()
    """`org/name`, or `org/name:subset`."""
    subset: str | None = None
    revision: str | None = location(None)


class WordProblemsConfig(Config):
    """Two-step word problems with worked solutions, generated: see `ladle.data.word_problems`."""

    kind: Literal["word_problems"] = "word_problems"
    seed: int = 233
    train: int = Field(20_000, gt=0)
    """Worked solutions to train on."""
    worksheets: int = Field(2_000, ge=0)
    """Documents of five problems with bare answers, from the training pool: what the base model sees."""
    prompts: int = Field(1_000, ge=0)
    """Problems for rollouts, from the training pool, with their answers."""
    validation: int = Field(400, ge=0)
    """Held-out problems for choices between models."""
    test: int = Field(500, ge=0)
    """Held-out problems to report on."""
    largest_operand: int = Field(12, ge=4)
    """The three operands of a problem run from 2 to this."""


DatasetConfig = FetchDatasetConfig | WordProblemsConfig
