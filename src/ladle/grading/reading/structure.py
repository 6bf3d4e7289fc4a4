"""Read a whole normalised answer: lists, tuples, sets, intervals, matrices, relations, quantities, single values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from ladle.grading.reading.compounds import read_compound
from ladle.grading.reading.expressions import is_foreign_command, negate, read_expression
from ladle.grading.reading.quantities import Reading, read_numeral, read_quantity
from ladle.grading.reading.tokens import Token, depth_step, find_closing, split_at, tokenize
from ladle.grading.reading.tree import (
    BaseNumeral,
    ClockTime,
    Constant,
    Expression,
    Foreign,
    Interval,
    Listing,
    Matrix,
    Number,
    Ordered,
    Product,
    Quantity,
    Relation,
    Text,
    TooLarge,
    Tree,
    Union,
    Unordered,
    Unreadable,
)
from ladle.grading.reading.words import plain_words

_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_CLOCK = re.compile(
    r"(?:\\text\s*\{)?\s*(\d{1,2})\s*:\s*(\d{2})\s*(?:(?:\\(?:text|mathrm)\s*\{)?\s*([ap])\.?\s*m\.?\s*)?\}?",
    re.IGNORECASE,
)
_CAPITALS = re.compile(r"[A-Z]{3,}")  # the name of a triangle, not a product
_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\approx": "~", "\\in": "in"}
_COMMANDS = _RELATIONS.keys() | {
    "\\cup",
    "\\pm",
    "\\mp",
    "\\emptyset",
    "\\langle",
    "\\rangle",
    "\\{",
    "\\begin",
    "\\end",
}
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"})
MAX_ITEMS = 100
"""A longer list is not an answer; it bounds the matching of lists without order."""


def read(text: str, reading: Reading) -> Tree:
    """Return what a normalised text says.

    Args:
        text: what `normalise` returned.
        reading: how to take what the text leaves open.

    Raises:
        Foreign: it holds a construct that the reader does not know.
        Unreadable: it says nothing that anything should read.
        TooLarge: it nests too deep, or lists too much.
    """
    clock = _CLOCK.fullmatch(text)
    if clock is not None:
        return ClockTime(int(clock[1]), int(clock[2]), f"{clock[3].lower()}m" if clock[3] else None)
    if _CAPITALS.fullmatch(text):
        return Text(plain_words(text))
    if reading.is_grouped:
        text = ungroup(text)
    tokens = tokenize(text)
    try:
        return _Structure(reading).read_list(tokens)
    except Unreadable as error:
        foreign = next((token for token in tokens if is_foreign_command(token) and token.text not in _COMMANDS), None)
        if foreign is None:
            raise
        raise Foreign(f"{foreign.text} is not known") from error


def ungroup(text: str) -> str:
    """Return the text without the commas that separate thousands, `1,450,000`."""
    return _GROUPED.sub(lambda found: found[0].replace(",", ""), text)


def _is_comma(token: Token) -> bool:
    return token.kind != "word" and token.text in (",", ";")


def _is_joint(token: Token) -> bool:
    return _is_comma(token) or token.kind == "word" and token.text.strip(" ,").lower() in ("and", "or")


class _Structure:
    """Reads structures; values within them are left to `read_expression`."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def read_list(self, tokens: Sequence[Token]) -> Tree:
        compound = read_compound(tokens)
        if compound is not None:
            return compound
        pieces, joints = split_at(tokens, _is_joint)
        pieces = [piece for piece in pieces if piece]  # "3, 5, and 7" has two joints in a row
        if len(pieces) > MAX_ITEMS:
            raise TooLarge(f"a list of more than {MAX_ITEMS} items")
        items = [item for piece in pieces for item in self.read_both_signs(piece)]
        if len(items) < 2:
            return items[0] if items else self.read_item([])
        words = {joint.text.strip(" ,").lower() for joint in joints if joint.kind == "word"}
        return Listing(items, "and" if words == {"and"} else "or" if words == {"or"} else ",")

    def read_both_signs(self, tokens: Sequence[Token]) -> list[Tree]:
        """Read one item, or the two that a plus-minus sign stands for."""
        if not any(token.text in ("\\pm", "\\mp") for token in tokens) or _encloses_list(tokens):
            return [self.read_item(tokens)]
        upper, lower = {"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"}
        return [
            self.read_item([Token("sign", signs[token.text]) if token.text in signs else token for token in tokens])
            for signs in (upper, lower)
        ]

    def read_item(self, tokens: Sequence[Token]) -> Tree:
        if not tokens:
            raise Unreadable("nothing where a value should be")
        sides, operators = split_at(tokens, lambda token: token.kind != "word" and token.text in _RELATIONS)
        if operators:
            sides = sides if sides[0] else sides[1:]  # "= 5"
            if len(sides) == 1:
                return self.read_item(sides[0])
            names = [_RELATIONS[operator.text] for operator in operators][-len(sides) + 1 :]
            return Relation([self.read_side(side) for side in sides], names)
        return self.read_side(tokens)

    def read_side(self, tokens: Sequence[Token]) -> Tree:
        parts, _ = split_at(tokens, lambda token: token.text == "\\cup")
        if len(parts) > 1:
            return Union([self.read_side(part) for part in parts])
        if not tokens:
            raise Unreadable("nothing where a value should be")
        words = self._read_words(tokens)
        if words is not None:
            return words
        if depth_step(tokens[0]) == 1 and find_closing(tokens, 0) == len(tokens) - 1:
            bracketed = self._read_bracketed(tokens)
            if bracketed is not None:
                return bracketed
        if [token.text for token in tokens] == ["\\emptyset"]:
            return Unordered([])
        special = _read_reals(tokens) or self._read_membership(tokens) or self._read_scaled_matrix(tokens)
        if special is not None:
            return special
        return read_numeral(tokens) or read_quantity(tokens, self._reading) or read_expression(tokens)

    def _read_words(self, tokens: Sequence[Token]) -> Text | None:
        """Read words that stand alone: marked as text, or in plain letters where a number was asked for."""
        if any(token.kind not in ("word", "run") for token in tokens):
            return None
        is_word = tokens[0].kind == "word" and len(tokens[0].text) > 1
        if is_word or (self._reading.accepts_nouns and len(tokens[0].text) > 2):
            return Text(plain_words(" ".join(token.text for token in tokens)))
        return None

    def _read_membership(self, tokens: Sequence[Token]) -> Relation | None:
        """Read `t(0,4]`, a letter and its range; the brackets of other letters before a pair are their arguments'."""
        brackets = tokens[1].text + tokens[-1].text if len(tokens) > 2 else ""
        if brackets not in ("(]", "[)") or tokens[0].kind != "run" or find_closing(tokens, 1) != len(tokens) - 1:
            return None
        return Relation([read_expression(tokens[:1]), self.read_side(tokens[1:])], ["in"])

    def _read_scaled_matrix(self, tokens: Sequence[Token]) -> Matrix | None:
        """Read a matrix with a factor before it, or the sign of transposition after it."""
        texts = [token.text for token in tokens]
        if "\\begin" not in texts:
            return None
        start = texts.index("\\begin")
        start -= start > 0 and texts[start - 1] in ("(", "[")
        end = find_closing(tokens, start) + 1
        factor = tokens[: start - (start > 0 and texts[start - 1] in ("\\cdot", "\\times", "*"))]
        is_transposed = "".join(texts[end:]).replace("{", "").replace("}", "") in ("^T", "^\\top")
        matrix = self._read_bracketed(tokens[start:end])
        if not isinstance(matrix, Matrix) or (texts[end:] and not is_transposed):
            return None
        rows = [list(column) for column in zip(*matrix.rows, strict=True)] if is_transposed else matrix.rows
        if not factor:
            return Matrix(rows)
        scale = negate(Number(Fraction(1))) if texts[:start] == ["-"] else read_expression(factor)
        return Matrix([[Product([scale, cell]) for cell in row] for row in rows])

    def _read_bracketed(self, tokens: Sequence[Token]) -> Tree | None:
        opening, closing, inside = tokens[0].text, tokens[-1].text, tokens[1:-1]
        if opening == "\\begin":
            if tokens[-1].kind != tokens[0].kind:
                raise Unreadable(f"{tokens[0].kind} ends as {tokens[-1].kind}")
            return _read_matrix(tokens[0].kind, inside)
        pieces, joints = split_at(inside, _is_comma)
        if opening == "\\{" and closing == "\\}" or opening == "{" and closing == "}" and joints:
            return self._read_condition(inside) or self._read_set(pieces if inside else [])
        if opening in ("(", "[") and len(pieces) == 1:
            return self._read_redundant(inside)
        if opening == "[" and all(_is_row(piece) for piece in pieces):
            return _read_rows([split_at(piece[1:-1], _is_comma)[0] for piece in pieces])
        if len(pieces) == 2 and (opening, closing) in (("[", "]"), ("(", "]"), ("[", ")")):
            low, high = (self.read_value(piece) for piece in pieces)
            return Interval(low, high, opening == "[", closing == "]")
        if opening in ("(", "[", "\\langle") and len(pieces) > 1:
            return Ordered([item for piece in pieces for item in self.read_both_signs(piece)])
        return None

    def _read_redundant(self, inside: Sequence[Token]) -> Tree | None:
        """Read a structure in redundant brackets; a value in them is left to the expression reader."""
        inner = self.read_item(inside) if inside else None
        return inner if isinstance(inner, (Ordered, Unordered, Interval, Union, Matrix, Relation, Text)) else None

    def _read_condition(self, inside: Sequence[Token]) -> Tree | None:
        """Read the condition of a set given by one, `x | x > 2`; None for a set that lists its elements."""
        sides, marks = split_at(inside, lambda token: token.text in ("|", ":"))
        if len(marks) != 1:
            return None
        condition = self.read_list(sides[1])
        return condition if isinstance(condition, (Relation, Listing)) else None

    def _read_set(self, pieces: Sequence[Sequence[Token]]) -> Unordered:
        if len(pieces) > MAX_ITEMS:
            raise TooLarge(f"a set of more than {MAX_ITEMS} items")
        return Unordered([item for piece in pieces for item in self.read_both_signs(piece)])

    def read_value(self, tokens: Sequence[Token]) -> Expression:
        """Read the end of an interval; its unit, if it has one, says nothing more."""
        side = self.read_side(tokens)
        if isinstance(side, Quantity):
            return side.value
        if isinstance(
            side, (Interval, Ordered, Unordered, Union, Matrix, Relation, Text, Listing, BaseNumeral, ClockTime)
        ):
            raise Unreadable("an interval whose ends are not values")
        return side


def _read_reals(tokens: Sequence[Token]) -> Interval | None:
    """Read the real numbers, or the half of them that a mark chooses: `\\mathbb{R}^+`, `\\mathbb{R}_{\\ge 0}`."""
    if tokens[0] != Token("face", "R"):
        return None
    mark = "".join(token.text for token in tokens[1:] if token.text not in ("{", "}"))
    zero, infinity = Number(Fraction(0)), Constant("infinity")
    if mark in ("^+", "_+", "_>0", "^>0"):
        return Interval(zero, infinity, False, False)
    if mark in ("_\\ge0", "^\\ge0"):
        return Interval(zero, infinity, True, False)
    if mark in ("^-", "_-", "_<0", "^<0"):
        return Interval(negate(infinity), zero, False, False)
    return Interval(negate(infinity), infinity, False, False) if not mark else None


def _encloses_list(tokens: Sequence[Token]) -> bool:
    """Whether the tokens are a tuple or set, whose items may each have both signs."""
    if depth_step(tokens[0]) != 1 or find_closing(tokens, 0) != len(tokens) - 1:
        return False
    return tokens[0].text == "\\{" or len(split_at(tokens[1:-1], _is_comma)[0]) > 1


def _read_matrix(environment: str, inside: Sequence[Token]) -> Matrix:
    if environment not in _MATRICES:
        raise Foreign(f"the environment {environment}")
    if environment == "array" and inside and inside[0].text == "{":
        inside = inside[find_closing(inside, 0) + 1 :]
    rows, _ = split_at(inside, lambda token: token.text == "\\\\")
    return _read_rows([split_at(row, lambda token: token.text == "&")[0] for row in rows if row])


def _is_row(tokens: Sequence[Token]) -> bool:
    """Whether the tokens are a list in square brackets, as a row of a matrix in Python is."""
    return (
        len(tokens) > 2
        and tokens[0].text == "["
        and tokens[-1].text == "]"
        and find_closing(tokens, 0) == len(tokens) - 1
    )


def _read_rows(cells: list[list[list[Token]]]) -> Matrix:
    if not cells or any(len(row) != len(cells[0]) for row in cells):
        raise Unreadable("a matrix whose rows differ in length")
    return Matrix([[read_expression(cell) for cell in row] for row in cells])
