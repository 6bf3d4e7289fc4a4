"""Read a whole normalised answer: lists, tuples, sets, intervals, matrices, relations, quantities, single values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

from ladle.grading import nodes
from ladle.grading.expressions import is_foreign_command, read_expression
from ladle.grading.extract import plain_words
from ladle.grading.normalise import plain_text, read_number_words, rewrite, rules
from ladle.grading.units import CURRENCIES, Unit, conversion, is_unit_run, read_unit

_GROUPED = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d\d)+,\d{3})(?![\d,])")
_CLOCK = re.compile(
    r"(?i)(?P<hour>\d{1,2})(?: ?: ?(?P<minute>[0-5]\d)(?: ?: ?00)?| ?o'clock)?(?: in the| at)?"
    r"(?: ?(?P<half>[ap])\.? ?m\b\.?| (?P<part>morning|afternoon|evening|night|noon|midnight))?"
)
_HALVES = {"noon": "pm", "midnight": "am", "morning": "am", "afternoon": "pm", "evening": "pm", "night": "pm"}
_MONTHS = "january february march april may june july august september october november december"
_DATE = re.compile(
    r"(?:on )?(?:the )?(?:(?P<month>[a-z]{3,9})\.? (?P<day>\d{1,2})(?:st|nd|rd|th)?"
    r"|(?P<first>\d{1,2})(?:st|nd|rd|th)? (?:of )?(?P<second>[a-z]{3,9}))(?:(?: ?,)? (?P<year>\d{4}))?"
    r"|(?P<iso>\d{4})-(?P<number>\d\d)-(?P<last>\d\d)"
)
_CAPITALS = re.compile(r"[A-Z]{3,}|[IVX]{2}")  # the name of a triangle or a quadrant, not a product
# The transpose of a row, `]1, 3]` for (1, 3], and the real numbers with the half of them that a mark chooses.
_SPELLINGS = rules(r"""
^ → ^[(\[](.*)[)\]] ?\^ ?\{? ?(?:T|\\top) ?\}?$ → (\1)
] → ^\]([^\[\]]+[,;][^\[\]]+[\[\]])$ → (\1
[ → ^([(\[][^\[\]]+[,;][^\[\]]+)\[$ → \1)
\mathbb → \\mathbb ?\{ ?R ?\} ?[\^_] ?\{? ?(?:\+|> ?0) ?\}?END → (0, \\infty)
\mathbb → \\mathbb ?\{ ?R ?\} ?[\^_] ?\{? ?(?:\\ge ?0) ?\}?END → [0, \\infty)
\mathbb → \\mathbb ?\{ ?R ?\} ?[\^_] ?\{? ?(?:-|< ?0) ?\}?END → (-\\infty, 0)
\mathbb → \\mathbb ?\{ ?R ?\}END → (-\\infty, \\infty)
""", END=r"(?= ?(?:$|[,;)\]]|\\(?:cup|\}|text)))")  # fmt: skip
_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\approx": "~", "\\in": "in"}
_RELATIONS |= {"\\equiv": "="}
_STRUCTURES = r"\cup \pm \mp \emptyset \langle \rangle \{ \begin \end"
_COMMANDS = {*_RELATIONS, *_STRUCTURES.split()}
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"})
_BOTH_SIGNS = ({"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"})
_TRIGONOMETRIC = frozenset({"\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc"})
_COMMAS = (",", ";")
MAX_ITEMS = 100  # a longer list is not an answer; it bounds the matching of lists without order


class Reading(NamedTuple):
    """How to take what a text leaves open; the gold decides it for the answer.

    Attributes:
        is_grouped: a comma before three digits separates thousands; else it separates answers.
        accepts_nouns: any word after a number is its unit (`18 eggs`); else it must be marked as text, or name one.
        accepts_unit_letters: a lone letter after a number is a unit too (`10 m/s`); else it is a variable.
    """

    is_grouped: bool
    accepts_nouns: bool
    accepts_unit_letters: bool


def read(text: str, reading: Reading) -> nodes.Tree:
    """Return what a normalised text says.

    Args:
        text: what `normalise` returned.
        reading: how to take what the text leaves open.

    Raises:
        Foreign: it holds a construct that the reader does not know.
        Unreadable: it says nothing that anything should read.
        TooLarge: it nests too deep, or lists too much.
    """
    words = plain_text(text)
    found = _read_clock(words) or _read_date(words)
    if found is not None:
        return found
    if _CAPITALS.fullmatch(text):
        return nodes.Text(plain_words(text))
    text = rewrite(text, _SPELLINGS)
    tokens = nodes.tokenize(ungroup(text) if reading.is_grouped else text)
    try:
        return _Structure(reading).read_list(tokens)
    except nodes.Unreadable as error:
        foreign = next((token for token in tokens if is_foreign_command(token) and token.text not in _COMMANDS), None)
        if foreign is None:
            raise
        raise nodes.Foreign(f"{foreign.text} is not known") from error


def _read_clock(words: str) -> nodes.ClockTime | None:
    """Read `4:30 p.m.`, `16:30`, `8 am`, `12 noon`; None of anything else, and of a number alone."""
    found = _CLOCK.fullmatch("12 " + words if words in _HALVES else words)
    if found is None or not (found["minute"] or found["half"] or found["part"] or "o'clock" in words):
        return None
    half = f"{found['half']}m".lower() if found["half"] else _HALVES.get((found["part"] or "").lower())
    return nodes.ClockTime(int(found["hour"]), int(found["minute"] or 0), half)


def _read_date(words: str) -> nodes.Date | None:
    """Read `April 9th, 2023`, `9 Apr.` or `2023-04-09`; None of anything else."""
    found = _DATE.fullmatch(words.lower())
    if found is None:
        return None
    if found["iso"]:
        return nodes.Date(int(found["number"]), int(found["last"]), int(found["iso"]))
    name = found["month"] or found["second"]
    month = next((number for number, month in enumerate(_MONTHS.split(), 1) if month.startswith(name)), None)
    if month is None:
        return None
    return nodes.Date(month, int(found["day"] or found["first"]), int(found["year"]) if found["year"] else None)


def ungroup(text: str) -> str:
    """Return the text without the commas that separate thousands, `1,450,000`."""
    return _GROUPED.sub(lambda found: found[0].replace(",", ""), text)


class _Structure:
    """Reads structures; values within them are left to `read_expression`."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def read_list(self, tokens: Sequence[nodes.Token]) -> nodes.Tree:
        compound = _read_compound(tokens)
        if compound is not None:
            return compound
        pieces, joints = nodes.split_at(tokens, (*_COMMAS, "and", "or"))
        pieces = [piece for piece in pieces if piece]  # "3, 5, and 7" has two joints in a row
        items = self._read_items(pieces, "list")
        if len(items) < 2:
            return items[0] if items else self.read_item([])
        words = {joint.text.strip(" ,").lower() for joint in joints if joint.kind == "word"}
        return nodes.Listing(items, words.pop() if len(words) == 1 else ",")

    def _read_items(self, pieces: Sequence[Sequence[nodes.Token]], name: str) -> list[nodes.Tree]:
        """Read the items of a list; one with a plus-minus sign is two."""
        if len(pieces) > MAX_ITEMS:
            raise nodes.TooLarge(f"a {name} of more than {MAX_ITEMS} items")
        items: list[nodes.Tree] = []
        for piece in pieces:
            has_both_signs = any(token.text in _BOTH_SIGNS[0] for token in piece)
            if has_both_signs and _is_enclosed(piece):  # a tuple or set, whose items may each have both signs
                has_both_signs = piece[0].text != "\\{" and not nodes.split_at(piece[1:-1], _COMMAS)[1]
            for signs in _BOTH_SIGNS if has_both_signs else ({},):
                spelled = [nodes.Token("sign", signs[token.text]) if token.text in signs else token for token in piece]
                items.append(self.read_item(spelled))
        return items

    def read_item(self, tokens: Sequence[nodes.Token]) -> nodes.Tree:
        sides, operators = nodes.split_at(tokens, _RELATIONS)
        if operators:
            sides = sides if sides[0] else sides[1:]  # "= 5"
            if len(sides) == 1:
                return self.read_item(sides[0])
            names = [_RELATIONS[operator.text] for operator in operators][-len(sides) + 1 :]
            return nodes.Relation([self.read_side(side) for side in sides], names)
        return self.read_side(tokens)

    def read_side(self, tokens: Sequence[nodes.Token]) -> nodes.Tree:
        parts, joints = nodes.split_at(tokens, (":", "\\cup"))
        if joints and all(joint.text == ":" for joint in joints):
            return nodes.Ratio([read_expression(part) for part in parts])
        if joints:
            return nodes.Union([self.read_side(part) for part in parts])
        if not tokens:
            raise nodes.Unreadable("nothing where a value should be")
        if all(token.kind in ("word", "run") for token in tokens):
            is_word = tokens[0].kind == "word" and len(tokens[0].text) > 1
            if is_word or (self._reading.accepts_nouns and len(tokens[0].text) > 2):
                return nodes.Text(plain_words(" ".join(token.text for token in tokens)))
        if _is_enclosed(tokens):
            bracketed = self._read_bracketed(tokens)
            if bracketed is not None:
                return bracketed
        if [token.text for token in tokens] == ["\\emptyset"]:
            return nodes.Unordered([])
        special = self._read_membership(tokens) or self._read_scaled_matrix(tokens) or _read_numeral(tokens)
        return special or self._read_quantity(tokens) or read_expression(tokens)

    def _read_membership(self, tokens: Sequence[nodes.Token]) -> nodes.Relation | None:
        """Read `t(0,4]`, a letter and its range; the brackets of other letters before a pair are their arguments'."""
        brackets = tokens[1].text + tokens[-1].text if len(tokens) > 2 else ""
        if brackets not in ("(]", "[)") or tokens[0].kind != "run" or not _is_enclosed(tokens[1:]):
            return None
        return nodes.Relation([read_expression(tokens[:1]), self.read_side(tokens[1:])], ["in"])

    def _read_scaled_matrix(self, tokens: Sequence[nodes.Token]) -> nodes.Matrix | None:
        """Read a matrix with a factor before it, or the sign of transposition after it."""
        texts = [token.text for token in tokens]
        if "\\begin" not in texts:
            return None
        start = texts.index("\\begin")
        start -= start > 0 and texts[start - 1] in ("(", "[")
        end = nodes.find_closing(tokens, start) + 1
        factor = tokens[: start - (start > 0 and texts[start - 1] in ("\\cdot", "\\times", "*"))]
        is_transposed = "".join(texts[end:]).replace("{", "").replace("}", "") in ("^T", "^\\top")
        matrix = self._read_bracketed(tokens[start:end])
        if not isinstance(matrix, nodes.Matrix) or (texts[end:] and not is_transposed):
            return None
        rows = [list(column) for column in zip(*matrix.rows, strict=True)] if is_transposed else matrix.rows
        if not factor:
            return nodes.Matrix(rows)
        scale = nodes.Number(Fraction(-1)) if texts[:start] == ["-"] else read_expression(factor)
        return nodes.Matrix([[nodes.Product([scale, cell]) for cell in row] for row in rows])

    def _read_bracketed(self, tokens: Sequence[nodes.Token]) -> nodes.Tree | None:
        opening, closing, inside = tokens[0].text, tokens[-1].text, tokens[1:-1]
        if opening == "\\begin":
            if tokens[-1].kind != tokens[0].kind:
                raise nodes.Unreadable(f"{tokens[0].kind} ends as {tokens[-1].kind}")
            return _read_matrix(tokens[0].kind, inside)
        pieces, joints = nodes.split_at(inside, _COMMAS)
        if (opening, closing) == ("\\{", "\\}") or (opening, closing) == ("{", "}") and joints:
            sides, marks = nodes.split_at(inside, ("|", ":"))
            condition = self.read_list(sides[1]) if len(marks) == 1 else None  # `x | x > 2`
            if isinstance(condition, (nodes.Relation, nodes.Listing)):
                return condition
            return nodes.Unordered(self._read_items(pieces if inside else [], "set"))
        if opening in ("(", "[") and len(pieces) == 1:  # redundant, but those of a value are the expression's
            inner = self.read_item(inside) if inside else None
            return None if isinstance(inner, (nodes.Expression, nodes.Quantity)) else inner
        rows, _ = nodes.split_at(inside, (";",))
        cells = [nodes.split_at(row, (",",))[0] for row in rows]
        if opening == "[" and len(rows) > 1 and len(cells[0]) > 1:  # as MATLAB writes a matrix
            return _read_rows(cells)
        if opening == "[" and all(len(piece) > 2 and _is_enclosed(piece, "[]") for piece in pieces):  # as Python does
            return _read_rows([nodes.split_at(piece[1:-1], _COMMAS)[0] for piece in pieces])
        if len(pieces) == 2 and (opening, closing) in (("[", "]"), ("(", "]"), ("[", ")")):
            low, high = map(self.read_side, pieces)
            return nodes.Interval(low, high, opening == "[", closing == "]")
        if opening in ("(", "[", "\\langle") and len(pieces) > 1:
            return nodes.Ordered(self._read_items(pieces, "tuple"))
        return None

    def _read_quantity(self, tokens: Sequence[nodes.Token]) -> nodes.Quantity | None:
        """Read a value with a unit after it or a money sign before it; None if the tokens are something else.

        Raises:
            Unreadable: a number is followed by words that are not its unit (`18 thousand`).
        """
        sign = 1 if tokens[0].text == "-" and len(tokens) > 1 else 0
        money = CURRENCIES.get(tokens[sign].text)
        if money is not None:  # and perhaps what it is paid for: `\$45 per year`
            tokens = [*tokens[:sign], *tokens[sign + 1 :]]
            start = self._find_unit(tokens)
            paid_for = {} if start is None else read_unit(tokens[start:], accept_nouns=True)
            return nodes.Quantity(read_expression(tokens[:start]), {money: 1} | paid_for)
        start = self._find_unit(tokens)
        if start is None:
            return None
        kinds = {token.kind for token in tokens[start:]}
        try:
            unit = read_unit(tokens[start:], self._reading.accepts_nouns or kinds == {"word"})
        except nodes.Unreadable:
            if self._reading.accepts_nouns and kinds <= {"word", "run"}:
                raise
            return None
        return nodes.Quantity(read_expression(tokens[:start]), unit)

    def _find_unit(self, tokens: Sequence[nodes.Token]) -> int | None:
        depths = accumulate(map(nodes.depth_step, tokens))
        outside = (index for index, depth in enumerate(depths, start=1) if depth == 0 and index < len(tokens))
        return next((index for index in outside if self._starts_unit(tokens, index)), None)

    def _starts_unit(self, tokens: Sequence[nodes.Token], index: int) -> bool:
        token, before = tokens[index], tokens[index - 1]
        if before.text in ("_", "^", "-", "+", "/", "*"):  # the token belongs to these
            return False
        following = tokens[index + 1 : index + 3]
        if token.text == "/" and following:  # `\$15/hour`
            is_word = following[0].kind in ("word", "run") and len(following[0].text) > 1
            return is_word and before.kind == "number"
        if token.text in ("'", '"'):
            return before.kind == "number" and tokens[0].text != "\\frac"
        if token.text == "^":  # but degrees may be an argument's: tan 30^\circ
            is_degree = [piece.text for piece in following if piece.text != "{"][:1] == ["\\circ"]
            return is_degree and not any(piece.text in _TRIGONOMETRIC for piece in tokens[:index])
        if token.text == "\\frac" and len(following) == 2:
            kinds = ("word", "run") if self._reading.accepts_unit_letters else ("word",)
            return following[0].text == "{" and following[1].kind in kinds
        if token.kind == "run":
            if len(token.text) == 1:
                return self._reading.accepts_unit_letters
            is_after_number = index == 1 and before.kind == "number"
            return self._reading.accepts_nouns or is_after_number and is_unit_run(token.text)
        return token.kind == "word" or token.text == "%" or token.text in CURRENCIES


def _is_enclosed(tokens: Sequence[nodes.Token], by: str = "") -> bool:
    """Whether the first token is a bracket that the last one closes, and they are these two."""
    is_bracket = nodes.depth_step(tokens[0]) == 1 and by in ("", tokens[0].text + tokens[-1].text)
    return is_bracket and nodes.find_closing(tokens, 0) == len(tokens) - 1


def _read_compound(tokens: Sequence[nodes.Token]) -> nodes.Quantity | None:
    """Read a quantity in several units of a kind, the largest first: `1 hour 30 minutes`; None of anything else."""
    starts = [index for index, token in enumerate(tokens) if token.kind == "number"]
    if len(starts) < 2 or starts[0] != 0:
        return None
    units = [_read_bare_unit(tokens[start + 1 : end]) for start, end in pairwise([*starts, len(tokens)])]
    sizes = [conversion(units[0], unit) if unit else None for unit in units]
    if None in sizes or any(big <= small for big, small in pairwise(filter(None, sizes))):
        return None
    sized = zip(starts, filter(None, sizes), strict=True)
    terms = [nodes.Product([nodes.read_literal(tokens[start].text), nodes.Number(size)]) for start, size in sized]
    return nodes.Quantity(nodes.Sum([*terms]), units[0])


def _read_bare_unit(tokens: Sequence[nodes.Token]) -> Unit:
    """Read a unit and the `and` or comma after it; empty where the tokens are anything else."""
    names = [token for token in tokens if token.text.strip().lower() not in ("and", ",")]
    if all(token.kind in ("word", "run") or token.text in ("'", '"') for token in names):
        with suppress(nodes.Unreadable):
            return read_unit(names, accept_nouns=False)
    return {}


def _read_numeral(tokens: Sequence[nodes.Token]) -> nodes.BaseNumeral | None:
    """Read a number in a stated base (`2516_8`).

    Raises:
        Unreadable: the subscript of a number is not a base.
    """
    if len(tokens) < 3 or tokens[0].kind != "number" or tokens[1].text != "_" or not tokens[0].text.isdigit():
        return None
    name = "".join(token.text for token in tokens[2:]).strip("{}()").lower()
    base = read_number_words([name])
    if base is None:
        raise nodes.Unreadable(f"{name!r} is not a base")
    return nodes.BaseNumeral(tokens[0].text, base)


def _read_matrix(environment: str, inside: Sequence[nodes.Token]) -> nodes.Matrix:
    if environment not in _MATRICES:
        raise nodes.Foreign(f"the environment {environment}")
    if environment == "array" and inside and inside[0].text == "{":
        inside = inside[nodes.find_closing(inside, 0) + 1 :]
    rows, _ = nodes.split_at(inside, ("\\\\",))
    return _read_rows([nodes.split_at(row, ("&",))[0] for row in rows if row])


def _read_rows(cells: list[list[list[nodes.Token]]]) -> nodes.Matrix:
    if not cells or any(len(row) != len(cells[0]) for row in cells):
        raise nodes.Unreadable("a matrix whose rows differ in length")
    return nodes.Matrix([[read_expression(cell) for cell in row] for row in cells])
