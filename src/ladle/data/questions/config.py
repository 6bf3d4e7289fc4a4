"""Recipe sections for getting datasets: what stands under `datasets:`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ladle.config import Config, location


class FetchDatasetConfig(Config):
    """Bring a dataset of the Hub to disk, every split it has."""

    kind: Literal["dataset"] = "dataset"
    dataset: str = location()
    """`org/name`, or `org/name:subset`."""
    subset: str | None = None
    """Configuration of the dataset, where the id does not name it."""
    revision: str | None = location(None)

    def hub_subset(self) -> str | None:
        """Return the configuration of the dataset, from `subset` or from `org/name:subset`."""
        return self.subset or self.dataset.partition(":")[2] or None


class WordProblemsConfig(Config):
    """Two-step word problems with worked solutions, generated: see `ladle.data.questions.word_problems`."""

    kind: Literal["word_problems"] = "word_problems"
    seed: int = 233
    train: int = Field(default=20_000, gt=0)
    """Worked solutions to train on."""
    worksheets: int = Field(default=2_000, ge=0)
    """Documents of five problems with bare answers, from the training pool: what the base model sees."""
    prompts: int = Field(default=1_000, ge=0)
    """Problems for rollouts, from the training pool, with their answers."""
    validation: int = Field(default=400, ge=0)
    """Held-out problems for choices between models."""
    test: int = Field(default=500, ge=0)
    """Held-out problems to report on."""
    largest_operand: int = Field(default=12, ge=4)
    """The three operands of a problem run from 2 to this."""


def _kind_of(value: Any) -> str:
    return value.get("kind", "dataset") if isinstance(value, dict) else getattr(value, "kind", "dataset")


DatasetConfig = Annotated[
    Annotated[FetchDatasetConfig, Tag("dataset")] | Annotated[WordProblemsConfig, Tag("word_problems")],
    Discriminator(_kind_of),
]
"""A dataset of the Hub, unless its `kind` says otherwise."""
