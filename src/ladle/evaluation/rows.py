"""One line of a result file: an item, its completions, and how each was graded.

The fields idx, question, gt_cot, gt, code, pred, report and score are upstream's (Qwen2.5-Math's
`evaluation/math_eval.py`), as are the item's own fields that it copies; verdict, method, finish_reason and num_tokens
are Ladle's, one entry for each completion like code. Nothing in a row depends on time, so equal runs give equal
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ladle.evaluation.items import Item

COPIED_FIELDS = (
    *("level", "type", "unit", "solution_type", "choices", "solution", "ques_type", "ans_type"),
    *("answer_type", "dataset", "subfield", "filed", "theorem", "answer"),
)
"""Fields of an item that upstream keeps in its rows (`filed` is its spelling)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered.

    Attributes:
        text: the completion.
        num_tokens: its length, the end-of-sequence token included; None where that is not known.
        finish_reason: `stop` or `length`; None where that is not known.
    """

    text: str
    num_tokens: int | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion with its verdict.

    Attributes:
        completion: what was graded.
        answer: the answer found in it.
        method: the rule that found it.
        verdict: correct, wrong, unparsed or timeout.
        reason: what decided that.
    """

    completion: Completion
    answer: str
    method: str
    verdict: str
    reason: str


def make_row(item: Item, scored: Sequence[Scored]) -> dict[str, Any]:
    """Return the row of an item and its graded completions."""
    copied = {name: item.row[name] for name in COPIED_FIELDS if item.row.get(name) is not None}
    return {
        "idx": item.idx,
        "question": item.question,
        "gt_cot": item.solution,
        "gt": item.gold,
        **copied,
        **_how_to_compare(item),
        "code": [one.completion.text for one in scored],
        "pred": [one.answer for one in scored],
        "report": [one.reason for one in scored],
        "score": [one.verdict == "correct" for one in scored],
        "verdict": [one.verdict for one in scored],
        "method": [one.method for one in scored],
        "finish_reason": [one.completion.finish_reason for one in scored],
        "num_tokens": [one.completion.num_tokens for one in scored],
    }


def _how_to_compare(item: Item) -> dict[str, Any]:
    """Return what grading needs beside the gold answer, under OlympiadBench's names, for grading the row again."""
    known = {
        "answer_type": item.type,
        "unit": item.unit,
        "error": item.tolerance,
        "is_multiple_answer": item.multiple or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def item_of(row: dict[str, Any], gold: str = "") -> Item:
    """Return the item that a row is about, ours or upstream's.

    Args:
        row: a result row.
        gold: the known answer where it is better known than by the row's `gt`, which upstream's normalisation may
            have damaged.
    """
    tolerance = row.get("error")
    return Item(
        idx=row["idx"],
        question=row.get("question", ""),
        solution=str(row.get("gt_cot") or ""),
        gold=gold or str(row["gt"]),
        type=row.get("answer_type"),
        unit=row.get("unit"),
        tolerance=None if tolerance is None else float(tolerance),
        multiple=bool(row.get("is_multiple_answer")),
        row=row,
    )


def completions_of(row: dict[str, Any]) -> list[Completion]:
    """Return the completions of a row, ours or upstream's; of one without any, its answers in boxes."""
    texts = row.get("code") or [f"\\boxed{{{answer}}}" for answer in row.get("pred") or []]
    unknown = [None] * len(texts)
    lengths = row.get("num_tokens") or unknown
    reasons = row.get("finish_reason") or unknown
    return [Completion(str(text), length, reason) for text, length, reason in zip(texts, lengths, reasons, strict=True)]


def item_score(row: dict[str, Any]) -> float:
    """Return the share of a row's completions that are correct."""
    return sum(map(bool, row["score"])) / len(row["score"])
