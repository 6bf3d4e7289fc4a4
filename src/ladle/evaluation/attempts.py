"""Attempts of a model at items: completions of their prompts, graded against the known answers.

Evaluation reports them, rollouts make preference data of them, a gate counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ladle.evaluation.benchmark import Item
from ladle.evaluation.prompts import Prompt
from ladle.generation.complete import Completed
from ladle.generation.request import Request, SamplingConfig, make_requests
from ladle.grading.grade import Grade, Grader, GraderConfig, Pair
from ladle.log import progress


@dataclass(frozen=True)
class Task:
    """Items to attempt, each with its prompt. The name enters the samples' seeds and the progress line."""

    name: str
    items: Sequence[Item]
    prompts: Sequence[Prompt]


class Completion(NamedTuple):
    """A model's answer; its length in tokens, the end-of-sequence token included, and why it ended, where known."""

    text: str
    num_tokens: int | None = None
    finish_reason: str | None = None


def requests_of(tasks: Sequence[Task], sampling: SamplingConfig) -> list[Request]:
    """Return the requests for all samples of all items, in order."""
    return [
        request
        for task in tasks
        for item, prompt in zip(task.items, task.prompts, strict=True)
        for request in make_requests(sampling, task.name, item.idx, prompt.ids, prompt.stop)
    ]


def completions_of(task: Task, done: Completed, num_samples: int) -> list[list[Completion]]:
    """Return the completions of each item of a task, in order."""
    samples = [[done.samples[f"{task.name}/{item.idx}/{n}"] for n in range(num_samples)] for item in task.items]
    return [[Completion(one.text, len(one.token_ids), one.finish_reason) for one in several] for several in samples]


def grade_completions(
    items: Sequence[Item],
    completions: Sequence[Sequence[Completion]],
    config: GraderConfig,
    description: str = "grading",
) -> list[list[Grade]]:
    """Return the grade of each completion of each item.

    Args:
        items: the problems.
        completions: for each of them, the model's completions.
        config: the grader's limits.
        description: what the progress line says.
    """
    pairs = [
        Pair(item.gold, completion.text, item.type, item.tolerance, item.unit, item.multiple)
        for item, several in zip(items, completions, strict=True)
        for completion in several
    ]
    grades = []
    with Grader(config) as grader, progress(len(pairs), description, "answers") as bar:
        for grade in grader.grade_completions(pairs):
            grades.append(grade)
            bar.advance(1)
    in_order = iter(grades)
    return [[next(in_order) for _ in several] for several in completions]
