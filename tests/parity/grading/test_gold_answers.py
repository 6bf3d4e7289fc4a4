"""On the real benchmarks: every gold answer equals itself, in its own text and in others', and no near miss does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ladle.grading.grade import Grader
from ladle.grading.verdict import Pair, Verdict

from .golds import COUNTS, near_misses, read_golds

MAX_ACCEPTED_NEAR_MISSES = 5
DIFFERENT_TEXTS = (" {} ", "${}$", "\\boxed{{{}}}", "**{}**.", "\\( {} \\)")


@pytest.fixture(scope="module")
def golds(shared_data: Path) -> list[Pair]:
    found = read_golds(shared_data / "benchmarks")
    assert len(found) == sum(COUNTS.values()) == 2836
    return found


def test_every_gold_equals_itself(golds: list[Pair], grader: Grader) -> None:
    wrong = [
        gold for gold, grade in zip(golds, grader.grade_many(golds), strict=True) if grade.verdict != Verdict.CORRECT
    ]
    assert wrong == []


def test_every_gold_equals_itself_as_models_wrap_it(golds: list[Pair], grader: Grader) -> None:
    unique = list({(gold.gold, gold.type, gold.multiple): gold for gold in golds}.values())
    for form in DIFFERENT_TEXTS:
        pairs = [gold._replace(answer=form.format(gold.answer.strip("$"))) for gold in unique]
        wrong = [
            (pair, grade.reason)
            for pair, grade in zip(pairs, grader.grade_many(pairs), strict=True)
            if grade.verdict is not Verdict.CORRECT
        ]
        assert wrong == []


def _pairs_of_near_misses(golds: list[Pair]) -> Iterator[Pair]:
    for gold in {gold.gold: gold for gold in golds}.values():
        yield from (gold._replace(answer=miss) for miss in near_misses(gold.gold))


@pytest.mark.slow
@pytest.mark.parametrize("with_types", [True, False])
def test_near_misses_are_not_accepted(golds: list[Pair], grader: Grader, with_types: bool) -> None:
    """What is accepted here is equal all the same: `f(x)=1` is `f(v)=1`, the letter being a name of nothing."""
    pairs = list(_pairs_of_near_misses(golds))
    assert len(pairs) > 3280
    if not with_types:
        pairs = [Pair(pair.gold, pair.answer) for pair in pairs]
    grades = zip(pairs, grader.grade_many(pairs), strict=True)
    accepted = [(pair.gold, pair.answer) for pair, grade in grades if grade.verdict is Verdict.CORRECT]
    assert len(accepted) <= MAX_ACCEPTED_NEAR_MISSES, accepted


def test_golds_with_a_noun_in_brackets_are_their_number(shared_data: Path, grader: Grader) -> None:
    """ASDiv's `9 (apples)`: the bare number is right, another is wrong, and few golds of the set cannot be read."""
    path = shared_data / "math-train" / "asdiv.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    golds = [str(json.loads(line)["answer"]) for line in path.read_text(encoding="utf-8").splitlines()]
    counted = [(gold, number[1]) for gold in golds if (number := re.match(r"([\d.]+)\s*\(", gold))]
    assert len(counted) > 2000
    right = {grade.verdict for grade in grader.grade_many(Pair(gold, number) for gold, number in counted)}
    wrong = {grade.verdict for grade in grader.grade_many(Pair(gold, f"1{number}") for gold, number in counted)}
    assert (right, wrong) == ({Verdict.CORRECT}, {Verdict.WRONG})
    assert sum(problem is not None for problem in grader.gold_problems(Pair(gold, "") for gold in golds)) <= 5
