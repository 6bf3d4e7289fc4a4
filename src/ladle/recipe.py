"""The recipe: every section's schema, composed of the stages' own configs. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, WithJsonSchema, model_validator
from pydantic.json_schema import GenerateJsonSchema, SkipJsonSchema

from ladle.config import Config, execution, location
from ladle.config_file import ON_COMMAND_LINE, ConfigFile
from ladle.data.config import ROLLOUTS, DatasetConfig, MixConfig, PreferConfig, SftDataConfig, SftPreferConfig
from ladle.errors import UserError
from ladle.evaluation.config import EvaluateConfig
from ladle.kto.config import KtoConfig
from ladle.models.config import InitConfig
from ladle.reporting.page import ReportConfig
from ladle.rollouts.config import GateConfig, RolloutConfig
from ladle.soups.config import SoupConfig
from ladle.training.config import Dtype, PretrainConfig, SftConfig, TrainerArguments

SectionT = TypeVar("SectionT", bound=Config)


class BaseConfig(Config):
    """Where the pipeline starts: a model of the Hub or a folder (`model`), or a fresh one (`init`).

    A fresh model can first be trained into a base, by `mix` and `pretrain` sections of its own.
    """

    model: str | None = location(None)
    """A Hub id, a folder, or a GGUF file."""
    revision: str | None = location(None)
    """Branch, tag or commit of a model of the Hub."""
    dtype: Dtype | None = None
    """Dtype to keep the imported weights in; unset keeps the source's."""
    init: InitConfig | None = None
    mix: MixConfig | None = None
    pretrain: PretrainConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> BaseConfig:
        if (self.model is None) == (self.init is None):
            problem = f"base needs `model` or `init`, and has {'both' if self.model else 'neither'}"
            raise UserError(problem, "keep `model: ORG/NAME` (or a folder), or `init: {...}`")
        if (self.mix is None) != (self.pretrain is None):
            raise UserError("base.mix and base.pretrain go together, and one is missing", "add it, or remove both")
        return self


class KtoArm(KtoConfig, PreferConfig):
    """One alignment: the preference data, the training on it, and whether its result is kept."""

    rounds: int = Field(1, ge=1)
    """Rollout, training and gate, this many times, each round from the last one's model and with prompts of its own."""
    gate: GateConfig | None = None
    """Held-out problems: a round's model is kept only if it solves significantly more of them. Required by several
    rounds."""

    @model_validator(mode="after")
    def _gate_rounds(self) -> KtoArm:
        if self.rounds > 1 and self.gate is None:
            problem = f"kto.rounds is {self.rounds}, and nothing says whether a round made the model worse"
            raise UserError(problem, "add kto.gate: {prompts: {dataset: …, split: validation}}")
        if self.rounds > 1 and not self.takes_rollouts:
            problem = f"kto.rounds is {self.rounds}, and kto.data takes no rollouts"
            raise UserError(problem, "add `rollouts` to kto.data")
        return self


class KtoSection(KtoArm):
    """One alignment by KTO (arXiv 2402.01306): the preference data, the training on it, and whether its result is kept.

    Names and defaults are those of TRL's KTOConfig where the meaning is; `trainer.learning_rate` is 1e-6. `model` is
    the policy's start and the reference.
    """

    arms: Annotated[
        dict[Annotated[str, Field(pattern=r"^[\w-]+$")], KtoArm], WithJsonSchema({"type": "object"}, mode="validation")
    ] = {}
    """Variants side by side, by name: each has the section's keys but those that it sets, nested ones too, and its
    model is `kto/NAME`. They share rollouts, preference data and reference pass where these are the same."""

    @model_validator(mode="before")
    @classmethod
    def _complete_arms(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("arms"), dict) or not values["arms"]:
            return values
        common = {key: value for key, value in values.items() if key in KtoArm.model_fields}
        arms = {name: _merge(common, arm or {}) for name, arm in values["arms"].items()}
        return {"data": [ROLLOUTS]} | values | {"arms": arms}  # the arms' data alone is used, and may differ in each


def _merge(common: Any, own: Any) -> Any:
    """Return values of an arm over those of its section; mappings are merged, anything else is replaced."""
    if not (isinstance(common, dict) and isinstance(own, dict)):
        return own
    return common | {key: _merge(common.get(key), value) for key, value in own.items()}


class SftSection(SftConfig, SftDataConfig, SftPreferConfig):
    """The `sft:` section: conversations, and the training on their answers."""


class Recipe(Config):
    """The whole pipeline; a section that is left out is skipped."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """What the run is called: its steps are kept in `ROOT/NAME/`."""
    seed: int = Field(233, ge=0, lt=2**32)
    """Given to every section that sets no seed of its own; evaluation keeps the seed of the published results."""
    data_root: str | None = location(None)
    """A folder that `${data_root}` stands for in the recipe's paths."""
    datasets: dict[Annotated[str, Field(pattern=r"^[^/.]+$")], DatasetConfig] = {}
    """Datasets by a name that other sections can use in place of a path or a Hub id."""
    base: BaseConfig | None = None
    """Left out where no stage starts from a model, as in a recipe that only evaluates models of the Hub."""
    mix: MixConfig | None = None
    pretrain: PretrainConfig | None = None
    soup: SoupConfig | None = None
    sft: SftSection | None = None
    rollout: RolloutConfig | None = None
    kto: KtoSection | list[KtoSection] | None = None
    """One alignment, or several in a row (a curriculum), each from the last one's model; the last may have `arms`."""
    evaluate: EvaluateConfig | list[EvaluateConfig] | None = None
    """One evaluation of models on benchmarks, or several, each with its own sampling; all but one have a `name`."""
    report: ReportConfig | None = None
    source: SkipJsonSchema[str] = execution("")
    """The file that it was read from, which is not a key of it."""
    source_text: SkipJsonSchema[str] = execution("")
    """All its keys as YAML, overrides included, which is not a key of it."""

    @model_validator(mode="after")
    def _tell_evaluations_apart(self) -> Recipe:
        names = [one.name for one in self.evaluate] if isinstance(self.evaluate, list) else []
        if repeated := [f"are called {name}" if name else "have no name" for name in names if names.count(name) > 1]:
            raise UserError(f"several evaluations {repeated[0]}", "give each a `name` of its own")
        return self


_NUMBER_AS_TEXT = r"^(\d[\d_.]*|\$\{\w+\})$"


class _RecipeJsonSchema(GenerateJsonSchema):
    """JSON schema of what editors see: to YAML 1.2 `20_000` is text, and `${name}` may stand for a number."""

    def int_schema(self, schema: Any) -> dict[str, Any]:
        return super().int_schema(schema) | {"type": ["integer", "string"], "pattern": _NUMBER_AS_TEXT}

    def float_schema(self, schema: Any) -> dict[str, Any]:
        return super().float_schema(schema) | {"type": ["number", "string"], "pattern": _NUMBER_AS_TEXT}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, for editors; descriptions are those of the keys."""
    schema = Recipe.model_json_schema(schema_generator=_RecipeJsonSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect, "$comment": "written by `ladle schema`"} | schema


def by_key(sections: SectionT | list[SectionT] | None, key: str) -> dict[str, SectionT]:
    """Return what may be one section or a list of them, in order, by their keys in the recipe."""
    if isinstance(sections, list):
        return {f"{key}.{place}": section for place, section in enumerate(sections)}
    return {} if sections is None else {key: sections}


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
    text = yaml.safe_dump(file.tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return _spread_seed(file.validate(Recipe)).model_copy(update={"source": str(path), "source_text": text})


def make_recipe(sections: dict[str, Any], overrides: Sequence[str], section: str) -> Recipe:
    """Return the recipe of some sections that a command line or a program gives; see `load_recipe`."""
    file = ConfigFile(ON_COMMAND_LINE, {"name": "standalone", **sections})
    file.override(list(overrides), section)
    return file.validate(Recipe)


def with_processes(recipe: Recipe, processes: int) -> Recipe:
    """Return the recipe with every training on so many processes of a machine."""
    return _change_sections(
        recipe, lambda config: {"processes": processes} if "processes" in type(config).model_fields else {}
    )


def _spread_seed(recipe: Recipe) -> Recipe:
    """Return the recipe with its seed wherever in it a seed can be set and is not."""

    def change(config: Config) -> dict[str, Any]:
        has_seed = "seed" in type(config).model_fields or isinstance(config, TrainerArguments)
        takes_it = has_seed and config.takes_recipe_seed and "seed" not in config.model_fields_set
        return {"seed": recipe.seed} if takes_it else {}

    return _change_sections(recipe, change)


def _change_sections(value: Any, change: Callable[[Config], dict[str, Any]]) -> Any:
    """Return a recipe, or a part of one, with every section in it changed."""
    if isinstance(value, Config):
        inner = {name: _change_sections(getattr(value, name), change) for name in type(value).model_fields}
        return value.model_copy(update=inner | change(value))
    if isinstance(value, (list, tuple)):
        return type(value)(_change_sections(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _change_sections(item, change) for key, item in value.items()}
    return value
