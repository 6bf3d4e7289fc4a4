"""The recipe: every section's schema, composed of the stages' own configs. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator

from ladle.config import Config, execution, location
from ladle.config_file import ON_COMMAND_LINE, ConfigFile
from ladle.data.config import ROLLOUTS, DatasetConfig, MixConfig, PreferConfig
from ladle.errors import UserError
from ladle.evaluation.config import EvaluateConfig
from ladle.kto.config import KtoConfig
from ladle.models.config import InitConfig
from ladle.rollouts.config import GateConfig, RolloutConfig
from ladle.soup.config import SoupConfig
from ladle.training.config import Dtype, PretrainConfig, TrainerArguments


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
    """Held-out problems: a round's model is kept only if it solves significantly more of them. Required by several
    rounds."""

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
    """Given to every section that sets no seed of its own; evaluation keeps the seed of the published results."""
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


def load_recipe(path: Path, overrides: Sequence[str] = (), section: str = "") -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value` assignments, applied in order.
        section: the section that the overrides are relative to; empty for the whole recipe.

    Raises:
        UserError: a fault of the file or of an override, with its key, file and line.
    """
    file = ConfigFile.read(path)
    file.override(list(overrides), section)
    recipe = file.validate(Recipe)
    return _with_seed(recipe, recipe.seed).model_copy(update={"seed": recipe.seed, "source": str(path)})


def make_recipe(sections: dict[str, Any], overrides: Sequence[str], section: str) -> Recipe:
    """Return the recipe of some sections that a command line or a program gives; see `load_recipe`."""
    file = ConfigFile(ON_COMMAND_LINE, {"name": "standalone", **sections})
    file.override(list(overrides), section)
    return file.validate(Recipe)


ConfigT = TypeVar("ConfigT", bound=Config)


def _with_seed(config: ConfigT, seed: int) -> ConfigT:
    """Return a section with the recipe's seed wherever in it a seed can be set and is not."""
    values = {name: getattr(config, name) for name in type(config).model_fields}
    changed = {name: _spread(value, seed) for name, value in values.items()}
    fresh = {name: value for name, value in changed.items() if value is not values[name]}
    is_unset = "seed" not in config.model_fields_set
    if is_unset and config.takes_recipe_seed and ("seed" in values or isinstance(config, TrainerArguments)):
        fresh["seed"] = seed
    return config.model_copy(update=fresh) if fresh else config


def _spread(value: Any, seed: int) -> Any:
    if isinstance(value, Config):
        return _with_seed(value, seed)
    if isinstance(value, (list, tuple)):
        return type(value)(_spread(item, seed) for item in value)
    return {key: _spread(item, seed) for key, item in value.items()} if isinstance(value, dict) else value
