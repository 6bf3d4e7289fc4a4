"""Answers inside a sentence: `The area is 116.`, `Ann pays \\$18 a day.`, `on a Friday`, `Yes, it is.`"""

from __future__ import annotations

import re

from ladle.grading.reading.number_words import read_number_words
from ladle.grading.reading.units import CHANGE_THE_NUMBER

_STATEMENT = re.compile(
    r"^\s*(?:so|thus|hence|therefore|then)?,?\s*(?:[A-Za-z]{2,}\s+){0,6}"
    r"(?:is|are|was|equals|is equal to)\s*:?\s+(?!not\b|no\b)(?=\S)",
    re.IGNORECASE,
)


_LABEL = re.compile(r"^\s*(?:the\s+)?(?:final\s+)?answer\s*:\s*(?=\S)", re.IGNORECASE)
_SAID_AGAIN = re.compile(
    r"(?P<quantity>^[-\\$\s]*\d[\d,.]*\s+[A-Za-z][A-Za-z ]*)\s\((?=[^()]*\d)(?=[^()]*[A-Za-z]{3})[^()]*\)[.\s]*$"
)
_WORD = r"[A-Za-z][A-Za-z'’-]*"
_SENTENCE = re.compile(
    rf"\s*(?:\\text\s*\{{\s*)?(?P<before>{_WORD}(?:,?\s+{_WORD}){{1,11}})\s+(?:\}}\s*)?"
    rf"(?P<number>(?:\\?\$)?\d[\d,]*(?:\.\d+)?)(?P<after>(?:\s+{_WORD}){{0,8}})\s*[.!]?\s*\}}?\s*"
)
_COMPARE = (
    "least",
    "most",
    "between",
    "from",
    "up",
    "under",
    "above",
    "below",
    "more",
    "less",
    "fewer",
    "first",
    "last",
)
_COMBINE = ("never", "or", "and", "double", "twice", "triple", "by", "power", "choose", "log", "sin", "cos", "tan")
_NOT_ALONE = CHANGE_THE_NUMBER.difference({"to"}) | {*_COMPARE, *_COMBINE}
"""Words beside which a number in a sentence is not what the sentence says."""


def drop_statement(text: str) -> str:
    """Return what a sentence says something is: `The area is 116.` gives `116.`, `Ann has to pay 5 dollars.` 5 dollars.

    A sentence that holds one number, in digits, counts for it if no word of it changes the number or is another one.
    """
    text = _SAID_AGAIN.sub(lambda found: found["quantity"], _LABEL.sub("", text, count=1), count=1)
    stated = _STATEMENT.sub("", text, count=1)
    found = _SENTENCE.fullmatch(stated)
    if found is None:
        return stated
    before, after = found["before"].lower().replace(",", " ").split(), found["after"].lower().split()
    words = {*before, *after}
    if words & _NOT_ALONE or any(read_number_words([word]) is not None for word in words):
        return stated
    return f"{found['number']} {' '.join(after[:1])}"


_PLACED = re.compile(r"^\s*(?:on|in|at)\s+(?:(?:a|an|the)\s+)?(?=[A-Za-z])", re.IGNORECASE)
_AFFIRMED = re.compile(
    r"^\s*(?:(yes),?\s+(?:it|he|she|they|there|this|that)\s+(?:is|are|does|do|can|will|has|have|was|were)"
    r"|(no),?\s+(?:it|he|she|they|there|this|that)\s+(?:is|are|does|do|can|will|has|have|was|were)(?:\s+not|n't))"
    r"\s*[.!]?\s*$",
    re.IGNORECASE,
)


def bare_answers(text: str) -> list[str]:
    """Return the text, and what it says without a sentence around it: `The day is X`, `on a Friday`, `Yes, it is`."""
    affirmed = _AFFIRMED.match(text)
    bare = (affirmed[1] or affirmed[2]) if affirmed else _PLACED.sub("", text, count=1)
    return [text, drop_statement(text), bare]
