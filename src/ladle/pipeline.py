"""From a recipe to its graph of steps: the whole method on one page.

    datasets ─┐
    base ─────┼─ mix ── pretrain ── soup ── [rollout ── prefer ── kto ── gate] × rounds, × arms
              └──────────── evaluate each model ──────────────── report

Every function below adds one stage; this is the one place that names them. A model or a dataset is referred to by name
(`base`, `pretrained`, `soup`, `sft`, `kto`, `kto/ARM`; a key of `datasets:`), by path, or by Hub id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ladle.artifacts.inputs import HubRepository, InputFinder, find_local, names_hub
from ladle.artifacts.step import Step, StepInput, StepOutput, in_build_order
from ladle.config import Config
from ladle.data.config import ROLLOUTS, FetchDatasetConfig, MixConfig, PreferConfig, SftDataConfig, SftPreferConfig
from ladle.data.formats import find_code
from ladle.errors import UserError
from ladle.evaluation.config import BenchmarkChoice, EvaluateModelConfig, ModelChoice, PromptConfig, builtin_benchmarks
from ladle.kto.config import KtoConfig, KtoReferenceConfig
from ladle.models.config import TOKENIZER_PATTERNS, FetchModelConfig, InitConfig, InitModelConfig, TokenizerSource
from ladle.recipe import KtoArm, Recipe, by_key
from ladle.rollouts.config import AttemptConfig
from ladle.soups.members import find_members
from ladle.stage import Stage
from ladle.stages import (
    evaluate,
    fetch,
    gate,
    kto,
    kto_reference,
    mix,
    prefer,
    pretrain,
    report,
    rollout,
    sft,
    sft_data,
    soup,
)
from ladle.training.checkpoint import TRAINING_STATE
from ladle.training.config import NextTokenConfig, PretrainConfig, SftConfig

Source = StepInput | Step | list[StepInput]
"""What a step reads in one role: an input, the output of a step, or several."""
Inputs = dict[str, Source]

CHECKPOINTS = "checkpoints/checkpoint-*"
STEP_NAMES = (
    *("datasets", "models", "base", "mix", "pretrain", "soup", "sft", "rollout", "prefer", "kto", "evaluate", "report"),
)
"""What the names of steps begin with, up to a slash."""


class Pipeline:
    """The steps of a recipe, by name.

    Args:
        recipe: the recipe.
        finder: finds what its names stand for.
        reads_members_once: members of a soup that are not hashed yet are hashed while they are averaged.
        on_fault: gets the errors of sections that make no step; without it the first one is raised.
    """

    def __init__(
        self,
        recipe: Recipe,
        finder: InputFinder,
        reads_members_once: bool = False,
        on_fault: Callable[[UserError], None] | None = None,
    ) -> None:
        self.recipe = recipe
        self.finder = finder
        self.reads_members_once = reads_members_once
        self.steps: dict[str, Step] = {}
        self.models: dict[str, Step] = {}
        for add in (
            *(self._add_datasets, self._add_base, self._add_mix, self._add_pretrain, self._add_soup),
            *(self._add_sft, self._add_alignments, self._add_evaluate, self._add_report),
        ):
            try:
                add()
            except UserError as fault:
                if on_fault is None:
                    raise
                on_fault(fault)

    def in_build_order(self) -> list[Step]:
        """Return every step, parents first."""
        return in_build_order(list(self.steps.values()))

    # The stages, in the order of the method.

    def _add_datasets(self) -> None:
        for name, config in self.recipe.datasets.items():
            inputs: Inputs = {}
            if isinstance(config, FetchDatasetConfig):
                if find_local(config.dataset):
                    problem = f"datasets.{name} names {config.dataset}, which is on disk already"
                    raise UserError(problem, "name it where it is used, and leave it out here")
                inputs["dataset"] = self._dataset(config.dataset, f"datasets.{name}", config.revision)
            self._add(f"datasets/{name}", fetch.STAGE, config, inputs, f"datasets.{name}")

    def _add_base(self) -> None:
        if (base := self.recipe.base) is None:
            return
        if base.init is not None:
            self.models["base"] = self._init_step("base" if base.pretrain is None else "base/init", base.init)
        elif base.model is not None:
            inputs: Inputs = {"model": self.finder.find("model", base.model, "base.model", base.revision)}
            self.models["base"] = self._add("base", fetch.STAGE, FetchModelConfig(dtype=base.dtype), inputs, "base")
        if base.mix is not None and base.pretrain is not None:
            mixture = self._mix_step("base/mix", base.mix, "base.mix")
            self.models["base"] = self._pretrain_step("base", base.pretrain, mixture, "base.pretrain")

    def _init_step(self, name: str, init: InitConfig) -> Step:
        source, key, trained = init.tokenizer, "base.init.tokenizer", None
        if isinstance(source, TokenizerSource):
            inputs, trained = {"tokenizer_data": self._dataset(source.dataset, f"{key}.dataset")}, source
        else:
            inputs = {"tokenizer": self._tokenizer(source, None, key)}
        return self._add(name, fetch.STAGE, InitModelConfig.part_of(init, train_tokenizer=trained), inputs, "base.init")

    def _add_mix(self) -> None:
        if self.recipe.mix is not None:
            self._mix_step("mix", self.recipe.mix, "mix")

    def _mix_step(self, name: str, config: MixConfig, section: str) -> Step:
        if config.tokenizer is None:
            inputs: Inputs = {"tokenizer": self._model(None, section)}
        elif self.models:
            problem = f"{section}.tokenizer is {config.tokenizer}, and the recipe has a base model with its own"
            raise UserError(problem, f"leave {section}.tokenizer out, or `base:`")
        else:
            key = f"{section}.tokenizer"
            inputs = {"tokenizer": self._tokenizer(config.tokenizer, config.tokenizer_revision, key)}
        for source in config.sources:
            key = f"{section}.sources.{source.name}"
            inputs[f"source:{source.name}"] = self._dataset(source.dataset, key, source.revision)
            if source.function is not None:
                inputs[f"function:{source.name}"] = self.finder.local((find_code(source.function),))
        if config.contamination is not None:
            key = f"{section}.contamination.data"
            inputs["benchmarks"] = self.finder.find("dataset", config.contamination.data, key)
        return self._add(name, mix.STAGE, config, inputs, section)

    def _add_pretrain(self) -> None:
        if (config := self.recipe.pretrain) is not None:
            self.models["pretrained"] = self._pretrain_step("pretrain", config, self.steps.get("mix"), "pretrain")

    def _pretrain_step(self, name: str, config: PretrainConfig, mixture: Step | None, section: str) -> Step:
        data: Source | None = mixture
        if config.data is not None and config.data != "mix":
            data = self.finder.find("dataset", config.data, f"{section}.data")
        if data is None:
            problem = f"{section} has nothing to train on"
            raise UserError(problem, f"add a `mix:` section, or {section}.data=DIR of a mixture")
        return self._add(name, pretrain.STAGE, config, self._start(config, section) | {"mixture": data}, section)

    def _start(self, config: NextTokenConfig, section: str) -> Inputs:
        """Return the model that a training starts from, or the training that it extends."""
        key = "model" if config.extends is None else "extends"
        start = self._model(getattr(config, key), f"{section}.{key}")
        return {"model": start} if config.extends is None else {"model": start, "extends": start}

    def _add_soup(self) -> None:
        if (config := self.recipe.soup) is None:
            return
        inputs: Inputs = {"members": [item for one in config.ordered_members for item in self._soup_member(one)]}
        if config.select != "none":
            if "mix" not in self.steps:
                problem = "soup.select needs a validation split"
                raise UserError(problem, "add a `mix:` section with `validation:`, or select: none")
            inputs["validation"] = self.steps["mix"]
        self.models["soup"] = self._add("soup", soup.STAGE, config, inputs, "soup")

    def _soup_member(self, member: str) -> list[StepInput]:
        training = self.recipe.pretrain
        if member in self.models:
            return [StepOutput(self.models[member])]
        if member != "checkpoints" or (training is None and find_local(member)):
            local = (self.finder.local((one,), TRAINING_STATE, self.reads_members_once) for one in find_members(member))
            return [*local] or [self.finder.find("model", member, "soup.members", known=tuple(self.models))]
        if training is None:
            problem = "soup.members names checkpoints, and the recipe has no `pretrain:`"
            raise UserError(problem, "add it, or name model folders")
        if training.peft is not None:
            problem = "the checkpoints of pretrain.peft hold adapters, which are not averaged"
            raise UserError(problem, "leave pretrain.peft out, or name model folders in soup.members")
        if training.trainer.values().get("save_strategy") == "no":
            problem = "the soup has no checkpoints: pretrain.trainer.save_strategy is no"
            raise UserError(problem, "set save_steps to save some")
        return [StepOutput(self.models["pretrained"], CHECKPOINTS)]

    def _add_sft(self) -> None:
        """Add the joined conversations, their tokens, and the training on them."""
        section = self.recipe.sft
        if section is None:
            return
        parent = self._model(section.model, "sft.model")
        rollouts = self._add_rollout("rollout", 0, parent) if section.takes_rollouts else None
        inputs = self._preference_sources(section, "sft.data", rollouts)
        preference = self._add("sft/prefer", prefer.STAGE, SftPreferConfig.part_of(section), inputs, "sft")
        inputs = {"tokenizer": parent, "preference": preference}
        rows = self._add("sft/data", sft_data.STAGE, SftDataConfig.part_of(section), inputs, "sft")
        inputs = self._start(section, "sft") | {"mixture": rows}
        self.models["sft"] = self._add("sft", sft.STAGE, SftConfig.part_of(section), inputs, "sft")

    def _add_alignments(self) -> None:
        """Add the alignments, in a row; of the last one each of its arms, which then share what is the same."""
        sections = by_key(self.recipe.kto, "kto")
        takers = [arm for section in sections.values() for arm in section.arms.values() or [section]]
        if not any(one.takes_rollouts for one in (*takers, self.recipe.sft) if one is not None):
            self._add_rollout("rollout", 0, None)  # for themselves
        if not sections:
            return
        *before, (key, last) = sections.items()
        if armed := [key for key, section in before if section.arms]:
            raise UserError(f"{armed[0]} has arms, and an alignment after it", "give arms to the last one of the list")
        arms = [(f"kto/{name}", f"{key}.arms.{name}", arm) for name, arm in last.arms.items()]
        made = [(name, self._add_arm(name, [*before, (at, arm)])) for name, at, arm in arms or [("kto", key, last)]]
        self.models |= made

    def _add_arm(self, name: str, alignments: Sequence[tuple[str, KtoArm]]) -> Step:
        """Add rollout, preference data, reference pass, training and gate of every round, and return the last one."""
        rounds = [(section, key) for key, section in alignments for _ in range(section.rounds)]
        model = kept = self._model(rounds[0][0].model, f"{rounds[0][1]}.model")
        for number, (section, key) in enumerate(rounds):
            is_last = number == len(rounds) - 1
            model = result = self._add_round(name, section, key, number, model, is_last)
            if section.gate is None:
                kept = result
            elif is_last or (number + 1) % section.gate.every == 0:
                between = "" if is_last else f"{name}/gate-{number + 1}"
                inputs = {"parent": kept, "candidate": result, **self._problems(section.gate, f"{key}.gate")}
                model = kept = self._add(between or name, gate.STAGE, section.gate, inputs, f"{key}.gate", between)
        return self.steps[name]

    def _add_round(self, name: str, section: KtoArm, key: str, number: int, parent: Source, is_last: bool) -> Step:
        """Add one round without its gate and return its training; arms share what the first round has in common."""
        arm = name.removeprefix("kto")
        own, suffix = (arm, f"/round-{number + 1}") if number else ("", "")
        rollouts = None
        if section.takes_rollouts:
            rollouts = self._add_rollout(f"rollout{own}{suffix}", number, parent, arm or "/kto")
        inputs = self._preference_sources(section, f"{key}.data", rollouts)
        joined = PreferConfig.part_of(section)
        preference = self._add(f"prefer{own}{suffix}", prefer.STAGE, joined, inputs, key, f"prefer{arm}")
        training = KtoConfig.part_of(section)
        passes = KtoReferenceConfig.of(training, section.seed)
        inputs = {"model": parent, "preference": preference}
        names = [f"kto{part}/reference-{number + 1}" for part in (own, arm)]
        reference = self._add(names[0], kto_reference.STAGE, passes, inputs, key, names[1])
        between = "" if is_last and section.gate is None else f"{name}/training-{number + 1}"
        inputs = {"model": parent, "reference": reference}
        return self._add(between or name, kto.STAGE, training, inputs, key, between)

    def _add_rollout(self, name: str, number: int, parent: Source | None, arm: str = "") -> Step | None:
        """Add attempts of the recipe's policy, in later rounds of their parent; None without a `rollout:` section."""
        if (config := self.recipe.rollout) is None:
            return None
        if parent is None or (number == 0 and config.model):
            parent = self._model(config.model, "rollout.model")
        inputs: Inputs = {"model": parent, **self._problems(config, "rollout")}
        return self._add(name, rollout.STAGE, config.in_round(number), inputs, "rollout", f"rollout{arm}")

    def _add_evaluate(self) -> None:
        for key, config in by_key(self.recipe.evaluate, "evaluate").items():
            for choice in config.models:
                name = choice.label if config.name is None else f"{config.name}/{choice.label}"
                inputs: Inputs = {"model": self._evaluated_model(choice, name, key)}
                for benchmark in config.benchmarks:
                    inputs[f"benchmark:{benchmark.name}"] = self._benchmark(benchmark, config.data, key)
                one_model = EvaluateModelConfig.of(config, choice)
                inputs |= self._examples(one_model, key)
                self._add(f"evaluate/{name}", evaluate.STAGE, one_model, inputs, key)

    def _evaluated_model(self, choice: ModelChoice, name: str, key: str) -> Source:
        """Return a model of the recipe, a folder, or the import of a model of the Hub."""
        if choice.model in self.models:
            return self.models[choice.model]
        known = tuple(self.models)
        found = self.finder.find("model", choice.model, f"{key}.models", choice.revision, known=known)
        if not isinstance(found, HubRepository):
            return found
        inputs: Inputs = {"model": found}
        return self._add(f"models/{choice.label}", fetch.STAGE, FetchModelConfig(), inputs, key, f"models/{name}")

    def _benchmark(self, benchmark: BenchmarkChoice, data: str | None, section: str) -> Source:
        key = f"{section}.benchmarks.{benchmark.name}"
        if benchmark.dataset is not None:
            return self._dataset(benchmark.dataset, key)
        if data is not None:
            place, names = str(Path(data) / benchmark.name / "test.jsonl"), tuple(builtin_benchmarks())
            return self.finder.find("dataset", place, key, known=() if benchmark.name in names else names)
        source = benchmark.hub_source()
        return self.finder.find("dataset", source.id, key, source.revision, file=source.file)

    def _add_report(self) -> None:
        if (config := self.recipe.report) is not None:
            whole = {"title": config.title or self.recipe.name, "recipe": self.recipe.source_text}
            self._add("report", report.STAGE, config.model_copy(update=whole), {**self.steps}, "report")

    # What names in a recipe stand for.

    def _add(
        self, name: str, stage: Stage, config: Config, inputs: Mapping[str, Source], section: str, own_name: str = ""
    ) -> Step:
        """Add a step to those of the recipe, and return it.

        With `own_name` a step of equal settings and inputs is returned in its place, if there is one, and it gets that
        name if another step has the first.
        """

        def items_of(source: Source) -> tuple[StepInput, ...]:
            if isinstance(source, Step):
                return (StepOutput(source),)
            return tuple(source) if isinstance(source, list) else (source,)

        step = Step(name, stage, config, {role: items_of(source) for role, source in inputs.items()}, section)
        if own_name:
            same = next((one for one in self.steps.values() if one.fingerprint == step.fingerprint), None)
            if same is not None:
                return same
            step = replace(step, name=own_name) if name in self.steps else step
        if step.name in self.steps:
            raise UserError(f"two steps are called {step.name}", f"give what {section} names another name")
        self.steps[step.name] = step
        return step

    def _model(self, reference: str | None, key: str) -> Source:
        """Return a model of the recipe or a folder; the latest one made so far if none is named."""
        if reference is None and not self.models:
            raise UserError(f"{key} needs a model, and the recipe has none", "add `base: {model: ORG/NAME}`")
        if reference is None or reference in self.models:
            return self.models[reference or list(self.models)[-1]]
        if names_hub(reference) and not find_local(reference):
            raise UserError(f"{key} names {reference}, a model of the Hub", "name it under `base:`, which imports it")
        return self.finder.find("model", reference, key, known=tuple(self.models))

    def _tokenizer(self, reference: str, revision: str | None, key: str) -> StepInput:
        """Return a folder with a tokenizer, or a model of the Hub of which only the tokenizer's files are fetched."""
        return self.finder.find("model", reference, key, revision, patterns=TOKENIZER_PATTERNS)

    def _preference_sources(self, joined: PreferConfig, key: str, rollouts: Step | None) -> Inputs:
        inputs: Inputs = {}
        for index, source in enumerate(joined.data):
            if source.dataset != ROLLOUTS:
                inputs[f"source:{index}"] = self._dataset(source.dataset, key, source.revision)
            elif rollouts is not None:
                inputs[f"source:{index}"] = rollouts
            else:
                problem = f"{key} names rollouts, and the recipe has no `rollout:` section"
                raise UserError(problem, "add one, or other data")
        return inputs

    def _problems(self, config: AttemptConfig, key: str) -> Inputs:
        return {"prompts": self._dataset(config.prompts.dataset, f"{key}.prompts"), **self._examples(config, key)}

    def _examples(self, config: PromptConfig, key: str) -> Inputs:
        shown = config.shown_examples
        return {} if shown is None else {"examples": self._dataset(shown.dataset, f"{key}.examples")}

    def _dataset(self, reference: str, key: str, revision: str | None = None) -> Source:
        of_recipe = self.steps.get(f"datasets/{reference}")
        return of_recipe or self.finder.find("dataset", reference, key, revision)
