"""From a recipe to its graph of steps: the whole method on one page.

    datasets ─┐
    base ─────┼─ mix ── pretrain ── soup ── [rollout ── prefer ── kto ── gate] × rounds
              └──────────── evaluate each model ──────────────── report

Every function below adds one stage. A model or a dataset is referred to by name (`base`, `pretrained`, `soup`, `kto`;
a key of `datasets:`), by path, or by Hub id.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ladle.artifacts.file_hashes import FileHashes
from ladle.artifacts.local import find_local, hash_local
from ladle.artifacts.step import HubRepository, Step, StepInput, StepOutput, in_build_order
from ladle.data.config import MixConfig
from ladle.data.preference.config import ROLLOUTS, PreferConfig
from ladle.data.questions.config import FetchDatasetConfig
from ladle.data.sources.functions import find_code
from ladle.errors import UserError
from ladle.evaluation.config import BenchmarkChoice, EvaluateModelConfig, ModelChoice
from ladle.hub import Resolve, is_repo_id, resolve_commit
from ladle.models.config import (
    TOKENIZER_PATTERNS,
    FetchModelConfig,
    InitConfig,
    InitModelConfig,
    TokenizerSource,
)
from ladle.recipe import KtoSection, Recipe
from ladle.reporting.config import PageConfig
from ladle.soup.config import SoupConfig
from ladle.soup.members import TRAINING_STATE, find_members
from ladle.training.config import PretrainConfig
from ladle.training.kto.config import KtoConfig, KtoReferenceConfig

Inputs = dict[str, tuple[StepInput, ...]]
"""What a step reads, by role."""

CHECKPOINTS = "checkpoints/checkpoint-*"
TRAINING_VOLATILE = ("checkpoints/runs/*",)
"""Tracker logs, whose bytes hold times."""


class Pipeline:
    """The steps of a recipe, by name."""

    def __init__(self, recipe: Recipe, hashes: FileHashes, resolve: Resolve = resolve_commit) -> None:
        self.recipe = recipe
        self.hashes = hashes
        self.resolve = resolve
        self.steps: dict[str, Step] = {}
        self.models: dict[str, Step] = {}
        self._add_datasets()
        self._add_base()
        self._add_mix()
        self._add_pretrain()
        self._add_soup()
        self._add_alignments()
        self._add_evaluate()
        self._add_report()

    def in_build_order(self, only: str | None = None) -> list[Step]:
        """Return every step, parents first; or only what the step named `only` needs, itself included.

        Raises:
            UserError: no step of that name.
        """
        if only is None:
            return in_build_order(list(self.steps.values()))
        if only not in self.steps:
            raise UserError(
                f"the recipe has no step {only!r}", f"add its section, or name one of {', '.join(self.steps)}"
            )
        return in_build_order([self.steps[only]])

    # The stages, in the order of the method.

    def _add_datasets(self) -> None:
        for name, config in self.recipe.datasets.items():
            inputs: Inputs = {}
            if isinstance(config, FetchDatasetConfig):
                if find_local(config.dataset):
                    raise UserError(
                        f"datasets.{name} names {config.dataset}, which is on disk already",
                        "name it where it is used, and leave it out here",
                    )
                inputs = {"dataset": self._dataset(config.dataset, config.revision)}
            self._add(Step(f"datasets/{name}", "fetch", config, inputs, f"datasets.{name}"))

    def _add_base(self) -> None:
        base = self.recipe.base
        if base is None:
            return
        if base.init is not None:
            self.models["base"] = self._init_step("base" if base.pretrain is None else "base/init", base.init)
        else:
            assert base.model is not None  # the schema asks for one of the two
            inputs = {"model": self._files_or_hub("model", base.model, base.revision, "base.model")}
            self.models["base"] = self._add(Step("base", "fetch", FetchModelConfig(dtype=base.dtype), inputs, "base"))
        if base.mix is not None and base.pretrain is not None:
            mix = self._mix_step("base/mix", base.mix, "base.mix")
            self.models["base"] = self._pretrain_step("base", base.pretrain, mix, "base.pretrain")

    def _init_step(self, name: str, init: InitConfig) -> Step:
        source = init.tokenizer
        trained = isinstance(source, TokenizerSource)
        config = InitModelConfig(
            seed=init.seed,
            architecture=init.architecture,
            dtype=init.dtype,
            train_tokenizer=source if trained else None,
        )
        if isinstance(source, TokenizerSource):
            inputs = {"tokenizer_data": self._dataset(source.dataset)}
        else:
            inputs = {"tokenizer": (self._tokenizer(source, None, "base.init.tokenizer"),)}
        return self._add(Step(name, "fetch", config, inputs, "base.init"))

    def _add_mix(self) -> None:
        if self.recipe.mix is not None:
            self._mix_step("mix", self.recipe.mix, "mix")

    def _mix_step(self, name: str, config: MixConfig, section: str) -> Step:
        inputs: Inputs = {"tokenizer": (self._mix_tokenizer(config, section),)}
        for source in config.sources:
            inputs[f"source:{source.name}"] = self._dataset(source.dataset, source.revision)
            if source.function is not None:
                inputs[f"function:{source.name}"] = (hash_local((find_code(source.function),), self.hashes),)
        if config.contamination is not None:
            inputs["benchmarks"] = self._files_or_hub(
                "dataset", config.contamination.data, None, f"{section}.contamination.data"
            )
        return self._add(Step(name, "mix", config, inputs, section))

    def _mix_tokenizer(self, config: MixConfig, section: str) -> StepInput:
        if config.tokenizer is None:
            return self._model(None, section)
        if self.models:
            raise UserError(
                f"{section}.tokenizer is {config.tokenizer}, and the recipe has a base model with its own",
                f"leave {section}.tokenizer out, or `base:`",
            )
        return self._tokenizer(config.tokenizer, config.tokenizer_revision, f"{section}.tokenizer")

    def _add_pretrain(self) -> None:
        config = self.recipe.pretrain
        if config is None:
            return
        mixture = self.steps.get("mix")
        self.models["pretrained"] = self._pretrain_step("pretrain", config, mixture, "pretrain")

    def _pretrain_step(self, name: str, config: PretrainConfig, mixture: Step | None, section: str) -> Step:
        if config.data is not None and config.data != "mix":
            data = self._files_or_hub("dataset", config.data, None, f"{section}.data")
        elif mixture is not None:
            data = (StepOutput(mixture),)
        else:
            raise UserError(
                f"{section} has nothing to train on", f"add a `mix:` section, or {section}.data=DIR of a mixture"
            )
        inputs = {"model": (self._model(config.model, f"{section}.model"),), "mixture": data}
        return self._add(Step(name, "pretrain", config, inputs, section, volatile=TRAINING_VOLATILE))

    def _add_soup(self) -> None:
        config = self.recipe.soup
        if config is None:
            return
        members = [item for member in config.ordered_members for item in self._soup_member(member, config)]
        inputs: Inputs = {"members": tuple(members)}
        if config.select != "none":
            if "mix" not in self.steps:
                raise UserError(
                    "soup.select needs a validation split", "add a `mix:` section with `validation:`, or select: none"
                )
            inputs["validation"] = (StepOutput(self.steps["mix"]),)
        self.models["soup"] = self._add(Step("soup", "soup", config, inputs, "soup"))

    def _soup_member(self, member: str, config: SoupConfig) -> tuple[StepInput, ...]:
        if member != "checkpoints":
            found = () if member in self.models else find_members(member)
            return (
                (hash_local(found, self.hashes, TRAINING_STATE),) if found else (self._model(member, "soup.members"),)
            )
        training = self.recipe.pretrain
        if training is None:
            raise UserError(
                "soup.members names checkpoints, and the recipe has no `pretrain:`", "add it, or name model folders"
            )
        if training.trainer.values().get("save_strategy") == "no":
            raise UserError(
                "the soup has no checkpoints: pretrain.trainer.save_strategy is no", "set save_steps to save some"
            )
        return (StepOutput(self.models["pretrained"], CHECKPOINTS),)

    def _add_alignments(self) -> None:
        """Add rollout, preference data, reference pass, training and gate of every round of every alignment."""
        alignments = self.recipe.alignments
        rounds = [(section, number) for section in alignments for number in range(section.rounds)]
        if not rounds and self.recipe.rollout is not None:
            self._add_rollout("rollout", 0, self._model(self.recipe.rollout.model, "rollout.model"))
        for number, (section, _) in enumerate(rounds):
            parent = self._model(section.model if number == 0 else None, "kto.model")
            self.models["kto"] = self._add_round(section, number, parent, is_last=number == len(rounds) - 1)

    def _add_rollout(self, name: str, number: int, policy: StepInput) -> None:
        config = self.recipe.rollout
        if config is not None:
            prompts = self._dataset(config.prompts.dataset)
            inputs = {"model": (policy,), "prompts": prompts}
            self._add(Step(name, "rollout", config.in_round(number), inputs, "rollout"))

    def _add_round(self, section: KtoSection, number: int, parent: StepInput, is_last: bool) -> Step:
        """Add one round and return the step whose model is its result; the last round's is called `kto`."""
        suffix = f"/round-{number + 1}" if number else ""
        rollout = self.recipe.rollout
        if rollout is not None and (number == 0 or section.takes_rollouts):
            policy = self._model(rollout.model, "rollout.model") if number == 0 and rollout.model else parent
            self._add_rollout(f"rollout{suffix}", number, policy)
        prefer = PreferConfig(**{name: getattr(section, name) for name in PreferConfig.model_fields})
        inputs: Inputs = {
            f"source:{index}": self._preference(source.dataset, source.revision, f"rollout{suffix}")
            for index, source in enumerate(prefer.data)
        }
        preference = self._add(Step(f"prefer{suffix}", "prefer", prefer, inputs, "kto"))
        training = KtoConfig(**{name: getattr(section, name) for name in KtoConfig.model_fields})
        inputs = {"model": (parent,), "preference": (StepOutput(preference),)}
        passes = KtoReferenceConfig.of(training, section.seed)
        reference = self._add(Step(f"kto/reference-{number + 1}", "kto_reference", passes, inputs, "kto"))
        inputs = {"model": (parent,), "reference": (StepOutput(reference),)}
        name = "kto" if is_last and section.gate is None else f"kto/training-{number + 1}"
        result = self._add(Step(name, "kto", training, inputs, "kto", version=2, volatile=TRAINING_VOLATILE))
        if section.gate is None:
            return result
        inputs = {"parent": (parent,), "candidate": (StepOutput(result),)}
        inputs["prompts"] = self._dataset(section.gate.prompts.dataset)
        return self._add(Step("kto" if is_last else f"kto/gate-{number + 1}", "gate", section.gate, inputs, "kto.gate"))

    def _add_evaluate(self) -> None:
        config = self.recipe.evaluate
        for choice in config.models if config is not None else ():
            assert config is not None
            inputs: Inputs = {"model": (self._evaluated_model(choice),)}
            for benchmark in config.benchmarks:
                inputs[f"benchmark:{benchmark.name}"] = self._benchmark(benchmark, config.data)
            one_model = EvaluateModelConfig.of(config, choice)
            if one_model.examples is not None:
                inputs["examples"] = self._dataset(one_model.examples.dataset)
            volatile = ("*_metrics.json", "final_result.json")
            self._add(Step(f"evaluate/{choice.label}", "evaluate", one_model, inputs, "evaluate", volatile=volatile))

    def _evaluated_model(self, choice: ModelChoice) -> StepInput:
        """Return a model of the recipe, a folder, or the import of a model of the Hub."""
        if choice.model in self.models or find_local(choice.model) or not is_repo_id(choice.model):
            return self._model(choice.model, "evaluate.models")
        inputs = {"model": self._files_or_hub("model", choice.model, choice.revision, "evaluate.models")}
        return StepOutput(self._add(Step(f"models/{choice.label}", "fetch", FetchModelConfig(), inputs, "evaluate")))

    def _benchmark(self, benchmark: BenchmarkChoice, data: str | None) -> tuple[StepInput, ...]:
        if benchmark.dataset is not None:
            return self._dataset(benchmark.dataset)
        if data is not None:
            return self._files_or_hub("dataset", str(Path(data) / benchmark.name / "test.jsonl"), None, "evaluate.data")
        source = benchmark.hub_source()
        return (HubRepository("dataset", source.id, source.revision, file=source.file, revision=source.revision),)

    def _add_report(self) -> None:
        if self.recipe.report is None:
            return
        title = self.recipe.report.title or self.recipe.name
        inputs = {name: (StepOutput(step),) for name, step in self.steps.items()}
        self._add(Step("report", "report", PageConfig(title=title), inputs, "report", volatile=("*",)))

    # What names in a recipe stand for.

    def _add(self, step: Step) -> Step:
        self.steps[step.name] = step
        return step

    def _model(self, reference: str | None, key: str) -> StepInput:
        """Return a model: the latest one made so far where none is named."""
        if reference is None and not self.models:
            raise UserError(f"{key} needs a model, and the recipe has none", "add `base: {model: ORG/NAME}`")
        if reference is None:
            return StepOutput(list(self.models.values())[-1])
        if reference in self.models:
            return StepOutput(self.models[reference])
        if find_local(reference):
            return hash_local(find_local(reference), self.hashes)
        known = ", ".join(self.models)
        raise UserError(
            f"{key} names {reference!r}, which is no model of this recipe and no folder",
            f"use one of {known}, or a path",
        )

    def _tokenizer(self, reference: str, revision: str | None, key: str) -> StepInput:
        """Return a folder with a tokenizer, or a model of the Hub of which the tokenizer's files alone are fetched."""
        (found,) = self._files_or_hub("model", reference, revision, key)
        return replace(found, patterns=TOKENIZER_PATTERNS) if isinstance(found, HubRepository) else found

    def _preference(self, reference: str, revision: str | None, rollout: str) -> tuple[StepInput, ...]:
        if reference != ROLLOUTS:
            return self._dataset(reference, revision)
        if rollout not in self.steps:
            raise UserError(
                "kto.data names rollouts, and the recipe has no `rollout:` section", "add one, or other data"
            )
        return (StepOutput(self.steps[rollout]),)

    def _dataset(self, reference: str, revision: str | None = None) -> tuple[StepInput, ...]:
        if f"datasets/{reference}" in self.steps:
            return (StepOutput(self.steps[f"datasets/{reference}"]),)
        return self._files_or_hub("dataset", reference, revision, "dataset")

    def _files_or_hub(self, kind: str, reference: str, revision: str | None, key: str) -> tuple[StepInput, ...]:
        if paths := find_local(reference):
            return (hash_local(paths, self.hashes),)
        repo_id, _, subset = reference.partition(":")
        if is_repo_id(repo_id):
            commit = self.resolve(kind, repo_id, revision)
            return (HubRepository(kind, repo_id, commit, subset or None, revision=revision),)
        raise UserError(
            f"there is no {kind} at {reference!r} ({key})", "name an existing path or glob, or a Hub id org/name"
        )
