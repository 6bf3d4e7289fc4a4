"""What goes into the grader and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ladle.errors import UserError


class Verdict(StrEnum):
    """The four outcomes: an answer that could not be judged is never reported as wrong."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"


class AnswerType(StrEnum):
    """What a gold answer is. A type only settles readings that the text alone leaves open: `(2,4)`, `58,500`, `B`."""

    INT = "int"
    NUMBER = "number"
    EXPRESSION = "expression"
    TUPLE = "tuple"
    SET = "set"
    INTERVAL = "interval"
    TEXT = "text"
    EQUATION = "equation"
    MATRIX = "matrix"
    QUANTITY = "quantity"


_OTHER_NAMES = {
    "integer": AnswerType.INT,
    "num": AnswerType.NUMBER,
    "numeric": AnswerType.NUMBER,
    "numerical": AnswerType.NUMBER,  # OlympiadBench, arXiv 2402.14008: Numerical, Expression, Tuple, Interval, Equation
    "float": AnswerType.NUMBER,
    "fraction": AnswerType.NUMBER,
    "decimal": AnswerType.NUMBER,
    "rational": AnswerType.NUMBER,
    "expr": AnswerType.EXPRESSION,
    "formula": AnswerType.EXPRESSION,
    "point": AnswerType.TUPLE,
    "list": AnswerType.SET,
    "choice": AnswerType.TEXT,
    "string": AnswerType.TEXT,
    "vector": AnswerType.MATRIX,
    "unit": AnswerType.QUANTITY,
}


def answer_type(name: str | None) -> AnswerType | None:
    """Return the type a name stands for, OlympiadBench's own names included; None stays None, for the text to decide.

    Raises:
        UserError: the name is not known.
    """
    if name is None or name == "":
        return None
    lowered = name.lower()
    if lowered in _OTHER_NAMES:
        return _OTHER_NAMES[lowered]
    if lowered in set(AnswerType):
        return AnswerType(lowered)
    raise UserError(f"answer type {name!r} is not known", f"use one of {', '.join(AnswerType)}, or leave it out")


@dataclass(frozen=True, slots=True)
class Pair:
    """A gold answer and an answer to hold against it.

    Attributes:
        gold: the reference answer, LaTeX or plain text.
        answer: the answer to grade: a bare answer, or a whole completion where the caller says so.
        type: an `AnswerType` name, or None to infer it from the gold text.
        tolerance: largest absolute difference between two numbers that still counts, as OlympiadBench's `error`.
        unit: the unit that the question asks for; an answer without one is not held against it, another unit is.
        multiple: the gold lists several answers, separated by commas, in any order.
    """

    gold: str
    answer: str
    type: str | None = None
    tolerance: float | None = None
    unit: str | None = None
    multiple: bool = False


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one pair.

    Attributes:
        verdict: correct, wrong, unparsed or timeout.
        reason: one line that says what decided it.
        seconds: wall time spent on it; 0 where the verdict came from the cache.
        extracted: the answer that was graded.
        method: how that answer was found: `given`, or the rule of `ladle.grading.extract` that found it.
    """

    verdict: Verdict
    reason: str
    seconds: float
    extracted: str
    method: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and its reason, before anything is known of where it was decided and how long that took."""

    verdict: Verdict
    reason: str
