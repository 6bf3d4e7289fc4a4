"""What goes into the grader and what comes out of it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

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


# OlympiadBench, arXiv 2402.14008, has Numerical, Expression, Tuple, Interval and Equation.
_OTHER_NAMES = """numerical=number num=number numeric=number float=number fraction=number decimal=number rational=number
integer=int expr=expression formula=expression point=tuple list=set choice=text string=text vector=matrix unit=quantity
"""
_TYPES = {kind.value: kind for kind in AnswerType}
_TYPES |= {name: _TYPES[kind] for name, kind in (pair.split("=") for pair in _OTHER_NAMES.split())}


def answer_type(name: str | None) -> AnswerType | None:
    """Return the type of this name, OlympiadBench's own names included; None stays None, for the text to decide.

    Raises:
        UserError: the name is not known.
    """
    if name and name.lower() not in _TYPES:
        problem = f"answer type {name!r} is not known"
        raise UserError(problem, f"use one of {', '.join(AnswerType)}, or leave it out")
    return _TYPES[name.lower()] if name else None


class Pair(NamedTuple):
    """A gold answer and an answer to grade by it.

    Attributes:
        gold: the reference answer, LaTeX or plain text.
        answer: the answer to grade: a bare answer, or a whole completion where the caller says so.
        type: an `AnswerType` name, or None to infer it from the gold text.
        tolerance: largest absolute difference between two numbers that still counts, as OlympiadBench's `error`.
        unit: the unit that the question names; an answer without one may be correct, one with another is wrong.
        multiple: the gold lists several answers, separated by commas, in any order.
    """

    gold: str
    answer: str
    type: str | None = None
    tolerance: float | None = None
    unit: str | None = None
    multiple: bool = False


class Judgement(NamedTuple):
    """A verdict and one line that says what decided it; the wall time it took, where a worker process did the work.

    `is_lost` if that worker was killed by the clock or died.
    """

    verdict: Verdict
    reason: str
    seconds: float = 0.0
    is_lost: bool = False


class Grade(NamedTuple):
    """The verdict on one pair.

    Attributes:
        verdict: correct, wrong, unparsed or timeout.
        reason: one line that says what decided it.
        seconds: wall time that a worker spent on it; 0 where none was needed, as for a verdict from the cache.
        extracted: the answer that was graded.
        method: how that answer was found: `given`, or the rule of `ladle.grading.extract` that found it.
    """

    verdict: Verdict
    reason: str
    seconds: float
    extracted: str
    method: str


READY = "ready"  # a worker's message: it waits for pairs, or resumes the one it is at
LOADING = "loading"  # a worker's message: it loads libraries, which is not charged to the answer it is at
