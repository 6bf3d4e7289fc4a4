"""Grade completions against their items: find each answer and hold it against the known one."""

from __future__ import annotations

from collections.abc import Sequence

from ladle.evaluation.items import Item
from ladle.evaluation.rows import Completion, Scored
from ladle.grading.config import GraderConfig
from ladle.grading.grade import Grader
from ladle.grading.verdict import Grade, Pair
from ladle.log import progress


def score_completions(
    items: Sequence[Item],
    completions: Sequence[Sequence[Completion]],
    config: GraderConfig,
    description: str = "grading",
) -> list[list[Scored]]:
    """Return each completion with its verdict.

    Args:
        items: the problems.
        completions: for each of them, the model's completions.
        config: the grader's limits.
        description: what the progress line says.
    """
    pairs = [
        make_pair(item, completion.text)
        for item, several in zip(items, completions, strict=True)
        for completion in several
    ]
    grades = []
    with Grader(config) as grader, progress(len(pairs), description, "answers") as bar:
        for grade in grader.grade_completions(pairs):
            grades.append(grade)
            bar.advance(1)
    in_order = iter(grades)
    return [[_scored(completion, next(in_order)) for completion in several] for several in completions]


def _scored(completion: Completion, grade: Grade) -> Scored:
    return Scored(completion, grade.extracted, grade.method, str(grade.verdict), grade.reason)


def make_pair(item: Item, answer: str) -> Pair:
    """Return what the grader needs to hold an answer, or the one in a completion, against an item."""
    return Pair(
        gold=item.gold,
        answer=answer,
        type=item.type,
        tolerance=item.tolerance,
        unit=item.unit,
        multiple=item.multiple,
    )
