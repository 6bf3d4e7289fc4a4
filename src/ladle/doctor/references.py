"""Everything outside the recipe that it names: models, tokenizers, datasets, benchmarks, each with its key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ladle.artifacts.inputs import find_local
from ladle.data.config import FetchDatasetConfig, MixConfig
from ladle.evaluation.config import EvaluateConfig
from ladle.hub import is_repo_id
from ladle.recipe import KtoSection, Recipe

OWN_MODELS = ("base", "pretrained", "soup", "kto")


@dataclass(frozen=True)
class Reference:
    """One name in a recipe that stands for files.

    Attributes:
        key: where it stands in the recipe.
        kind: `model` or `dataset`.
        name: a path, a glob or a Hub id.
        revision: branch, tag or commit of a Hub id.
        file: the one file that is read, of a benchmark on the Hub.
    """

    key: str
    kind: str
    name: str
    revision: str | None = None
    file: str | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files or folders it names on this machine."""
        return find_local(self.name)

    @property
    def repo_id(self) -> str | None:
        """The Hub repository it names, where it names nothing here."""
        name = self.name.partition(":")[0]
        return name if not self.paths and is_repo_id(name) else None


def mixes_of(recipe: Recipe) -> list[tuple[str, MixConfig]]:
    """Return the recipe's mixtures by their keys."""
    found = (("base.mix", recipe.base.mix if recipe.base else None), ("mix", recipe.mix))
    return [(key, mix) for key, mix in found if mix is not None]


def alignments_of(recipe: Recipe) -> list[tuple[str, KtoSection]]:
    """Return the recipe's alignments by their keys."""
    many = isinstance(recipe.kto, list)
    return [(f"kto.{index}" if many else "kto", one) for index, one in enumerate(recipe.alignments)]


def references_of(recipe: Recipe) -> list[Reference]:
    """Return the references of a recipe, in its order, each once; names that the recipe itself defines left out."""
    own = {*recipe.datasets, *OWN_MODELS, "checkpoints", "rollouts", "mix"}
    return [one for one in dict.fromkeys(_all(recipe)) if one.name not in own and not one.name.startswith("kto")]


def _all(recipe: Recipe) -> Iterator[Reference]:
    for name, dataset in recipe.datasets.items():
        if isinstance(dataset, FetchDatasetConfig):
            yield Reference(f"datasets.{name}", "dataset", dataset.dataset, dataset.revision)
    base = recipe.base
    if base is not None and base.model is not None:
        yield Reference("base.model", "model", base.model, base.revision)
    if base is not None and base.init is not None and isinstance(base.init.tokenizer, str):
        yield Reference("base.init.tokenizer", "model", base.init.tokenizer)
    for section, mix in mixes_of(recipe):
        yield from _of_mix(section, mix)
    if recipe.rollout is not None:
        yield Reference("rollout.prompts", "dataset", recipe.rollout.prompts.dataset)
    for key, section in alignments_of(recipe):
        for source in section.data:
            yield Reference(f"{key}.data", "dataset", source.dataset, source.revision)
        if section.model is not None:
            yield Reference(f"{key}.model", "model", section.model)
    if recipe.evaluate is not None:
        yield from _of_evaluate(recipe.evaluate)
    if recipe.soup is not None:
        yield from (Reference("soup.members", "model", member) for member in recipe.soup.members)


def _of_mix(section: str, mix: MixConfig) -> Iterator[Reference]:
    if mix.tokenizer is not None:
        yield Reference(f"{section}.tokenizer", "model", mix.tokenizer, mix.tokenizer_revision)
    for source in mix.sources:
        yield Reference(f"{section}.sources.{source.name}", "dataset", source.dataset, source.revision)
    if mix.contamination is not None:
        yield Reference(f"{section}.contamination.data", "dataset", mix.contamination.data)


def _of_evaluate(evaluate: EvaluateConfig) -> Iterator[Reference]:
    for choice in evaluate.models:
        yield Reference("evaluate.models", "model", choice.model)
    for benchmark in evaluate.benchmarks:
        key = f"evaluate.benchmarks.{benchmark.name}"
        if benchmark.dataset is not None:
            yield Reference(key, "dataset", benchmark.dataset)
        elif evaluate.data is not None:
            yield Reference(key, "dataset", str(Path(evaluate.data) / benchmark.name / "test.jsonl"))
        else:
            source = benchmark.hub_source()
            yield Reference(key, "dataset", source.id, source.revision, source.file)
