"""A benchmark as a declaration: where its items are and which fields hold what. Free of torch.

The built-in ones are the YAML files of `ladle/evaluation/benchmarks`; adding one is adding a file.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import yaml

from ladle.config import Config
from ladle.errors import UserError

PromptStyle = Literal["cot", "openseek_sft", "qwen25-math-cot", "chat"]


class HubSource(Config):
    """A dataset of the Hugging Face Hub at one commit."""

    id: str
    revision: str
    """The pinned 40-digit commit."""
    file: str
    """The file of the repository that holds the items."""


class FieldRule(Config):
    """How a text is read from one field of an item."""

    field: str
    rule: Literal["whole", "first", "boxed", "before", "after"] = "whole"
    r"""`whole` value; `first` of a list; content of the last `\\boxed{}`; text `before` or `after` the last marker."""
    marker: str = ""


class Benchmark(Config):
    """One benchmark. Where several fields are listed, an item's first non-empty one counts."""

    name: str
    hub: HubSource | None = None
    question: list[str] = ["question"]
    """Fields with the problem."""
    solution: list[FieldRule] = []
    """The reference solution, kept in results as `gt_cot`."""
    gold: list[FieldRule] = [FieldRule(field="answer")]
    """The known answer."""
    type: str | None = None
    """Answer type of every item, by the grader's names (`int`, `number`, `expression`, …); unset infers it."""
    type_field: str | None = None
    """Field with each item's own answer type."""
    unit_field: str | None = None
    """Field with the unit that an answer is in."""
    tolerance_field: str | None = None
    """Field with the absolute error that an answer may have."""
    multiple_field: str | None = None
    """Field that says whether the gold answer lists several answers, in any order."""
    prompt: PromptStyle = "cot"
    """Prompt format where the run sets none."""
    items: int | None = None
    """Number of items in the form that upstream's harness reads; another number is reported, not refused."""
    licence: str = "unknown"
    source: str = ""
    """Where the items come from and how editions differ."""


@cache
def builtin_benchmarks() -> dict[str, Benchmark]:
    """Return the built-in benchmarks by name."""
    files = sorted(resources.files("ladle.evaluation").joinpath("benchmarks").iterdir(), key=lambda file: file.name)
    loaded = [Benchmark.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files]
    return {benchmark.name: benchmark for benchmark in loaded}


def find_hub_source(name: str) -> HubSource:
    """Return where the Hub has a built-in benchmark.

    Raises:
        UserError: the name is not a built-in one.
    """
    benchmark = builtin_benchmarks().get(name)
    if benchmark is None or benchmark.hub is None:
        known = ", ".join(builtin_benchmarks())
        raise UserError(
            f"unknown benchmark {name!r}",
            f"use one of {known}; or give it a `dataset:` (or `evaluate.data` with {name}/test.jsonl)",
        )
    return benchmark.hub
