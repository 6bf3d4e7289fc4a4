"""The recipe: every section's schema, composed of the stages' own configs. Free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from ladle.config import Config, execution, location
from ladle.config_file import ConfigFile
from ladle.data.config import MixConfig
from ladle.data.preference.config import ROLLOUTS, PreferConfig
from ladle.data.questions.config import DatasetConfig
from ladle.errors import UserError
from ladle.evaluation.config import EvaluateConfig
from ladle.models.config import InitConfig
from ladle.rollouts.config import GateConfig, RolloutConfig
from ladle.soup.config import SoupConfig
from ladle.training.config import Dtype, PretrainConfig
from ladle.training.kto.config import KtoConfig


class BaseConfig(Config):
    """Where the pipeline starts: a model of the Hub or a folder (`model`), or a fresh one (`init`).

    A fresh model can first be trained into a base, by `mix` and `pretrain` sections of its own.
    """

    model: str | None = location(None)
    revision: str | None = location(None)
    dtype: Dtype | None = None
    """Dtype to keep the imported weights in; unset keeps the source's."""
    init: InitConfig | None = None
    mix: MixConfig | None = None
    pretrain: PretrainConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> BaseConfig:
        if (self.model is None) == (self.init is None):
            seen = "both" if self.model else "neither"
            raise UserError(
                f"base needs `model` or `init`, and has {seen}",
                "keep `model: ORG/NAME` (or a folder), or `init: {...}`",
            )
        if (self.mix is None) != (self.pretrain is None):
            raise UserError(
                "base.mix and base.pretrain go together, and one is missing", "add the other, or remove both"
            )
        return self


class KtoSection(KtoConfig, PreferConfig):
    """The `kto:` section: the preference data, the training on it, and whether its result is kept."""

    rounds: int = Field(1, ge=1)
    """Rollout, training and gate, this many times, each round from the last one's model and with prompts of its own."""
    gate: GateConfig | None = None
    """Problems by which a round's model must get better, lest its parent be kept; several rounds need it."""

    @property
    def takes_rollouts(self) -> bool:
        """Whether the recipe's rollouts are among the data."""
        return any(source.dataset == ROLLOUTS for source in self.data)

    @model_validator(mode="after")
    def _gate_rounds(self) -> KtoSection:
        if self.rounds > 1 and self.gate is None:
            raise UserError(
                f"kto.rounds is {self.rounds}, and nothing says whether a round made the model worse",
                "add kto.gate: {prompts: {dataset: …, split: validation}}",
            )
        if self.rounds > 1 and not self.takes_rollouts:
            raise UserError(
                f"kto.rounds is {self.rounds}, and kto.data takes no rollouts", "add `rollouts` to kto.data"
            )
        return self


class ReportConfig(Config):
    """The page that shows the run."""

    title: str | None = None


class Recipe(Config):
    """The whole pipeline; a section that is left out is skipped."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = 233
    """Given to every section that sets no seed of its own; evaluation keeps the published results' seed unless told."""
    data_root: str | None = location(None)
    """A folder that `${data_root}` stands for in the recipe's paths."""
    datasets: dict[str, DatasetConfig] = {}
    base: BaseConfig | None = None
    """Left out where no stage starts from a model, as in a recipe that only evaluates models of the Hub."""
    mix: MixConfig | None = None
    pretrain: PretrainConfig | None = None
    soup: SoupConfig | None = None
    rollout: RolloutConfig | None = None
    kto: KtoSection | list[KtoSection] | None = None
    """One alignment, or several in a row (a curriculum), each from the last one's model."""
    evaluate: EvaluateConfig | None = None
    report: ReportConfig | None = None
    source: str = execution("")

    @property
    def alignments(self) -> list[KtoSection]:
        """The `kto:` sections, in order."""
        if self.kto is None:
            return []
        return self.kto if isinstance(self.kto, list) else [self.kto]

    @field_validator("datasets")
    @classmethod
    def _plain_names(cls, datasets: dict[str, Any]) -> dict[str, Any]:
        for name in datasets:
            if "/" in name or "." in name:
                raise UserError(f"dataset name {name!r} looks like a path", "name it by letters, digits, - and _")
        return datasets


def load_recipe(path: Path, overrides: list[str] | None = None, section: str = "") -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` assignments, applied in order.
        section: the section that the overrides are relative to; empty for the whole recipe.

    Raises:
        UserError: a fault of the file or of an override, with its key, file and line.
    """
    file = ConfigFile.read(path)
    file.override(overrides or [], section)
    _spread_seed(file.tree)
    return file.validate(Recipe).model_copy(update={"source": str(path)})


def _spread_seed(tree: dict[str, Any]) -> None:
    """Give the recipe's seed to each section that takes one and sets none."""
    seed = tree.get("seed", Recipe.model_fields["seed"].default)
    base = tree.get("base")
    generated = [d for d in _values(tree.get("datasets")) if isinstance(d, dict) and d.get("kind") == "word_problems"]
    alignments = tree["kto"] if isinstance(tree.get("kto"), list) else [tree.get("kto")]
    sections = [tree.get("mix"), tree.get("rollout"), *alignments, *generated]
    sections += [alignment.get("gate") for alignment in alignments if isinstance(alignment, dict)]
    trainings = [tree.get("pretrain"), *alignments]
    if isinstance(base, dict):
        sections += [base.get("init"), base.get("mix")]
        trainings.append(base.get("pretrain"))
    for training in trainings:
        if isinstance(training, dict):
            training["trainer"] = training.get("trainer") or {}
            sections.append(training["trainer"])
    for section in sections:
        if isinstance(section, dict):
            section.setdefault("seed", seed)


def _values(section: Any) -> list[Any]:
    return list(section.values()) if isinstance(section, dict) else []
