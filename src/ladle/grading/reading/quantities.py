"""Read a number in a stated base, and a value with a unit after it or a money sign before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ladle.grading.reading.expressions import read_expression
from ladle.grading.reading.tokens import Token, depth_step
from ladle.grading.reading.tree import BaseNumeral, Quantity, Unreadable
from ladle.grading.reading.units import currency, is_unit_run, read_unit

_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_TRIGONOMETRIC = frozenset({"\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc"})
_MARKS = frozenset({"'", '"'})
_BOUND_TO_WHAT_FOLLOWS = frozenset({"_", "^", "-", "+", "/", "*"})


@dataclass(frozen=True, slots=True)
class Reading:
    """How to take what a text leaves open; the gold decides it for the answer.

    Attributes:
        is_grouped: a comma before three digits separates thousands; else it separates answers.
        accepts_nouns: any word after a number is its unit (`18 eggs`); else it must be marked as text, or name one.
        accepts_unit_letters: a lone letter after a number is a unit too (`10 m/s`); else it is a variable.
    """

    is_grouped: bool
    accepts_nouns: bool
    accepts_unit_letters: bool


def read_numeral(tokens: Sequence[Token]) -> BaseNumeral | None:
    """Return the number in a stated base that the tokens are (`2516_8`), None if they are something else.

    Raises:
        Unreadable: the subscript of a number is not a base.
    """
    if len(tokens) < 3 or tokens[0].kind != "number" or tokens[1].text != "_" or not tokens[0].text.isdigit():
        return None
    name = "".join(token.text for token in tokens[2:]).strip("{}()").lower()
    base = int(name) if name.isdigit() and len(name) < 3 else _BASES.get(name)
    if base is None:
        raise Unreadable(f"{name!r} is not a base")
    return BaseNumeral(tokens[0].text, base)


def read_quantity(tokens: Sequence[Token], reading: Reading) -> Quantity | None:
    """Return the value with a unit that the tokens are, None if they are something else.

    Raises:
        Unreadable: a number is followed by words that are not its unit (`18 thousand`).
    """
    money = 1 if tokens[0].text == "-" and len(tokens) > 1 else 0
    name = currency(tokens[money])
    if name is not None:
        return _read_money([*tokens[:money], *tokens[money + 1 :]], name, reading)
    start = _find_unit(tokens, reading)
    if start is None:
        return None
    kinds = {token.kind for token in tokens[start:]}
    try:
        unit = read_unit(tokens[start:], reading.accepts_nouns or kinds == {"word"})
    except Unreadable:
        if reading.accepts_nouns and kinds <= {"word", "run"}:
            raise
        return None
    return Quantity(read_expression(tokens[:start]), unit)


def _read_money(tokens: Sequence[Token], name: str, reading: Reading) -> Quantity:
    """Read what follows a money sign: an amount, and perhaps what it is paid for (`\\$45 per year`)."""
    start = _find_unit(tokens, reading)
    paid_for = {} if start is None else read_unit(tokens[start:], accept_nouns=True)
    return Quantity(read_expression(tokens[:start]), {name: 1} | paid_for)


def _find_unit(tokens: Sequence[Token], reading: Reading) -> int | None:
    depth = 0
    for index, token in enumerate(tokens):
        if depth == 0 and index > 0 and _starts_unit(tokens, index, reading):
            return index
        depth += depth_step(token)
    return None


def _starts_unit(tokens: Sequence[Token], index: int, reading: Reading) -> bool:
    token, before = tokens[index], tokens[index - 1]
    if before.text in _BOUND_TO_WHAT_FOLLOWS:
        return False
    if token.text in _MARKS:
        return before.kind == "number" and tokens[0].text != "\\frac"
    if token.text == "^":
        if any(piece.text in _TRIGONOMETRIC for piece in tokens[:index]):
            return False  # the degrees are the argument's: tan 30^\circ
        return [piece.text for piece in tokens[index + 1 : index + 3] if piece.text != "{"][:1] == ["\\circ"]
    if token.text == "\\frac" and len(tokens) > index + 2:
        kinds = ("word", "run") if reading.accepts_unit_letters else ("word",)
        return tokens[index + 1].text == "{" and tokens[index + 2].kind in kinds
    if token.kind == "run":
        return _is_unit_letters(token.text, index == 1 and before.kind == "number", reading)
    return token.kind == "word" or token.text == "%" or currency(token) is not None


def _is_unit_letters(letters: str, after_number: bool, reading: Reading) -> bool:
    if len(letters) == 1:
        return reading.accepts_unit_letters
    return reading.accepts_nouns or (after_number and is_unit_run(letters))
