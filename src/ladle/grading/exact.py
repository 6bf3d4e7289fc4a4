"""The fast path: the same text, or two plain numbers. It needs no limits, so it runs without a worker process."""

from __future__ import annotations

import re
from fractions import Fraction

from ladle.grading.reading.literals import read_literal
from ladle.grading.verdict import AnswerType, Judgement, Pair, Verdict

MAX_CHARACTERS = 60
"""Longer numbers go the general way."""
_NUMBER = re.compile(
    r"\s*\$?(?:\\boxed\{)?\s*(?P<sign>[-+]?)(?:"
    r"(?P<grouped>[1-9]\d{0,2}(?:(?:,|\{,\}|,\\!)\d{3})+(?:\.\d+)?)"
    r"|\\[dt]?frac\s*\{\s*(?P<above>\d{1,18})\s*\}\s*\{\s*(?P<below>\d{1,18})\s*\}"
    r"|(?P<over>\d{1,18})\s*/\s*(?P<under>\d{1,18})"
    r"|(?P<plain>\d+(?:\.\d+)?|\.\d+)"
    r")\s*\}?\$?\s*\.?\s*"
)


def judge_exactly(pair: Pair, kind: AnswerType | None) -> Judgement | None:
    """Return the verdict on the same text or on two plain numbers, None for any other pair.

    Decimals of different length are left to the rules of rounding, and whatever a tolerance or type bears upon too.
    """
    if pair.gold == pair.answer and pair.gold.strip():
        return Judgement(Verdict.CORRECT, "the same text")
    if pair.multiple or pair.tolerance is not None or kind not in (None, AnswerType.INT, AnswerType.NUMBER):
        return None
    gold = _read(pair.gold)
    answer = _read(pair.answer) if gold is not None else None
    if gold is None or answer is None:
        return None
    if gold == answer:
        return Judgement(Verdict.CORRECT, "equal numbers")
    if gold.denominator == answer.denominator == 1:
        return Judgement(Verdict.WRONG, "different numbers")
    return None


def _read(text: str) -> Fraction | None:
    if len(text) > MAX_CHARACTERS:
        return None
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    above, below = found["above"] or found["over"], found["below"] or found["under"]
    if above:
        value = Fraction(int(above), int(below)) if int(below) else None
    else:
        plain = found["plain"] or found["grouped"].replace("{,}", "").replace(",\\!", "").replace(",", "")
        value = read_literal(plain).value
    return -value if found["sign"] == "-" and value is not None else value
