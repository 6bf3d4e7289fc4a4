"""Recipe section of the evaluation: which models on which benchmarks, prompted and sampled how. Free of torch."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from ladle.config import Config, IsoDate, accepts_text, execution, location
from ladle.data.files import SUFFIXES
from ladle.data.formats import columns_of_template
from ladle.errors import UserError
from ladle.evaluation.benchmark import Benchmark, FieldRule, HubSource, PromptStyle, builtin_benchmarks
from ladle.generation.request import SamplingConfig, Workers
from ladle.grading.extract import Extraction
from ladle.grading.pool import GraderConfig
from ladle.models.config import Dtype


def _check_template(question: str) -> str:
    """Refuse braces that are not a template's."""
    if "{" in question:
        columns_of_template(question, "question")
    return question


_Question = Annotated[str, AfterValidator(_check_template)]


class GraderSection(GraderConfig, Config):
    """The grader's limits."""

    workers: int = execution(1, ge=1)
    """Worker processes; verdicts do not depend on it."""
    cache: str | None = execution(None)
    """SQLite file that keeps verdicts between runs; none by default."""


class EvaluationSampling(SamplingConfig):
    """Sampling settings whose defaults are those of the published results, the seed too."""

    takes_recipe_seed: ClassVar[bool] = False

    temperature: float = Field(default=0.6, ge=0)
    """Divisor of the logits; 0 takes the most likely token (greedy)."""
    max_new_tokens: int = Field(default=3072, ge=1)
    """Tokens after which a completion is cut."""


class ModelChoice(Config):
    """A model to evaluate; a plain string is its `model`."""

    model: str = location()
    """A name of the recipe (`base`, `pretrained`, `soup`, `sft`, `kto`, `kto/ARM`), a folder, or a Hub id."""
    revision: str | None = location(None)
    """Branch, tag or commit of a model of the Hub."""
    name: str | None = None
    """What results call it; unset is the model's own name."""
    few_shot: int | None = Field(default=None, ge=0)
    """Worked examples before each question, where it differs from `evaluate.few_shot`."""
    prompt: PromptStyle | None = None
    """Prompt format, where it differs from `evaluate.prompt`."""

    @property
    def own_prompt(self) -> dict[str, Any]:
        """What it sets of the evaluation's prompts."""
        return {name: value for name in ("few_shot", "prompt") if (value := getattr(self, name)) is not None}

    @property
    def label(self) -> str:
        """The name that results and folders carry."""
        return self.name or _plain(PurePath(self.model).name)


class BenchmarkChoice(Config):
    """A benchmark to evaluate on; a plain string is its `name`, or the jsonl or parquet file of a custom one.

    A name that is not built in is a custom one: rows with a question and an answer.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    """A built-in benchmark, or what results call a custom one."""
    dataset: str | None = location(None)
    """A jsonl or parquet file, a folder, a name of the recipe's `datasets:`, or a Hub id; unset is the built-in one."""
    split: str = "test"
    """Split to read of a `dataset` that has several."""
    question: _Question | None = None
    """Field with the question, for a custom benchmark, or text with the row's columns in braces."""
    answer: str | None = None
    """Field with the known answer, for a custom benchmark."""
    type: str | None = None
    """Answer type of every item; unset takes the benchmark's own, or infers it."""
    limit: int | None = Field(None, ge=1)
    """Items to take, from the first, where that differs from `evaluate.limit`."""
    start: int | None = Field(None, ge=0)
    """First item to take, where that differs from `evaluate.start`."""

    def definition(self) -> Benchmark:
        """Return the built-in declaration with this choice's own fields over it, or a custom one."""
        known = builtin_benchmarks().get(self.name, Benchmark(name=self.name, licence="custom"))
        over: dict[str, Any] = {} if self.question is None else {"question": [self.question]}
        over |= {} if self.answer is None else {"gold": [FieldRule(field=self.answer)]}
        over |= {} if self.type is None else {"type": self.type, "type_field": None}
        return known.model_copy(update=over)

    def hub_source(self) -> HubSource:
        """Return where the Hub has a built-in benchmark: repository, pinned commit and the one file to read.

        Raises:
            UserError: the benchmark is not a built-in one.
        """
        if (source := self.definition().hub) is not None:
            return source
        fix = f"use one of {', '.join(builtin_benchmarks())}; or give it a `dataset:` (or `evaluate.data` with"
        raise UserError(f"unknown benchmark {self.name!r}", f"{fix} {self.name}/test.jsonl)")


class ExamplesConfig(Config):
    """Worked examples for few-shot prompts, taken in order."""

    dataset: str = location()
    """A jsonl or parquet file, a folder, or a name of the recipe's `datasets:`."""
    split: str = "train"
    """Split to read."""
    question: _Question = "question"
    """Field with the question, or text with the row's columns in braces."""
    answer: str = "answer"
    """Field with the whole worked answer."""


def _benchmark_of(value: str) -> dict[str, str]:
    """Return the choice that text stands for: a benchmark's name, or the file or folder of a custom one."""
    suffix = next((suffix for suffix in SUFFIXES if value.endswith(suffix)), "")
    if re.fullmatch(r"[\w.-]+", value) and not suffix:
        return {"name": value}
    path = PurePath(value.removesuffix(suffix))
    return {
        "name": _plain(path.parent.name if path.name == "test" and path.parent.name else path.name),
        "dataset": value,
    }


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _refuse_repeated(choices: list[Any], info: ValidationInfo) -> list[Any]:
    labels = [getattr(choice, "label", choice.name) for choice in choices]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        problem = f"evaluate.{info.field_name} names {repeated[0]!r} twice"
        raise UserError(problem, "remove one, or give it another `name:`")
    return choices


_Unique = AfterValidator(_refuse_repeated)
_Models = list[Annotated[ModelChoice, accepts_text(ModelChoice, lambda text: {"model": text})]]
_Benchmarks = list[Annotated[BenchmarkChoice, accepts_text(BenchmarkChoice, _benchmark_of)]]


class PromptConfig(Config):
    """How problems are put to a model: the same for evaluations, rollouts and gates."""

    prompt: PromptStyle | None = None
    """`cot`, `openseek_sft`, `qwen25-math-cot`, or `chat` for the model's own template. Unset: in evaluations the
    benchmark's own; in rollouts and gates `chat` where the model has a template, else `cot`."""
    system_prompt: str | None = None
    """For `chat`: a system turn before the question."""
    template_date: IsoDate | None = None
    """For `chat`: the day (2026-01-31) that a chat template which writes today's date writes instead."""
    few_shot: int = Field(default=0, ge=0)
    """Worked examples before each question, taken from `examples`."""
    examples: ExamplesConfig | None = None
    dtype: Dtype | None = None
    """Type to run the weights in; unset: bfloat16 on GPUs, float32 on CPUs. Only float32 on a CPU promises the same
    samples in any batch."""

    @property
    def shown_examples(self) -> ExamplesConfig | None:
        """Where the examples of few-shot prompts are; None for other prompts."""
        return self.examples if self.few_shot else None

    def check_prompts(self) -> Self:
        """Refuse few-shot prompts without examples, and a system prompt without turns."""
        if self.few_shot and self.examples is None:
            problem = f"few_shot is {self.few_shot}, and there are no examples to show"
            raise UserError(problem, "set examples.dataset beside it")
        if self.system_prompt is not None and self.prompt != "chat":
            raise UserError(f"system_prompt is set, and prompt is {self.prompt or 'not'}", "set prompt: chat")
        return self

    _check = model_validator(mode="after")(check_prompts)


class EvaluateModelConfig(PromptConfig, Workers):
    """What decides the results of one model."""

    benchmarks: Annotated[_Benchmarks, _Unique] = Field(min_length=1)
    sampling: EvaluationSampling = EvaluationSampling()
    limit: int | None = Field(default=None, ge=1)
    """Items of each benchmark, from the first; unset takes all."""
    start: int = Field(default=0, ge=0)
    """First item to take."""
    end: int = Field(default=-1, ge=-1)
    """Item to stop before; -1 takes all."""
    grader: GraderSection = GraderSection()
    extraction: Extraction = "ladle"
    """Rule that finds the answer in a completion; `upstream` is the published harness's, for comparisons with it."""

    def style(self, choice: BenchmarkChoice) -> PromptStyle:
        """Return the prompt format for one of the benchmarks."""
        return self.prompt or choice.definition().prompt

    def part(self, choice: BenchmarkChoice) -> tuple[int | None, int, int]:
        """Return `limit`, `start` and `end` for one of the benchmarks."""
        return choice.limit or self.limit, self.start if choice.start is None else choice.start, self.end

    def run_id(self, choice: BenchmarkChoice) -> str:
        """Return the name that upstream gives a run: `test_cot_-1_seed1_t0.6_s0_e-1`."""
        limit, start, end = self.part(choice)
        name = f"{choice.split}_{self.style(choice)}_{-1 if limit is None else limit}"
        return f"{name}_seed{self.sampling.seed}_t{self.sampling.temperature}_s{start}_e{end}"

    @classmethod
    def of(cls, config: EvaluateConfig, choice: ModelChoice) -> EvaluateModelConfig:
        """Return the settings under which `config` evaluates one of its models."""
        own = config.model_copy(update=choice.own_prompt)
        return cls.part_of(own, examples=own.shown_examples)


class EvaluateConfig(EvaluateModelConfig):
    """The `evaluate:` section: every model on every benchmark."""

    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Of one evaluation among several: its results are called `NAME/MODEL`."""

    models: Annotated[_Models, _Unique] = Field(min_length=1)
    data: str | None = location(None)
    """Folder with `<benchmark>/test.jsonl`; unset takes the pinned datasets of the Hub."""

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        for choice in self.models:
            self.model_copy(update=choice.own_prompt).check_prompts()
        return self
