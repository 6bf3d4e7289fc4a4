"""What an answer is read into: tokens, and trees of the values and structures that they spell.

Values (`Expression`) are numbers and formulas; every other `Tree` says how values belong together. Nodes are plain
data: `ladle.grading.equivalence` decides whether two of them are the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, dataclass_transform

from ladle.grading.normalise import FUNCTION_NAMES, TEXT_COMMANDS


class Unreadable(ValueError):
    """The text is not mathematics that anything should read; the message says where the reader stopped."""


class Foreign(Unreadable):
    """The text holds a construct that this reader does not know, such as an integral; another reader may."""


class TooLarge(ArithmeticError):
    """The text or its value is beyond what is read or computed for an answer; nothing else should try either."""


@dataclass_transform()
class Tree:
    """Anything that an answer can be; every kind is a dataclass."""

    child_fields: ClassVar[list[str]] = []
    """The fields that hold nodes."""

    def __init_subclass__(cls) -> None:
        kinds = cls.__annotations__.items()
        cls.child_fields = [name for name, kind in kinds if re.search("Tree|Expression", str(kind))]
        dataclass(cls)


class Expression(Tree):
    """A single value."""


class Number(Expression):
    """A rational literal; `places` counts the decimals of a number written with a decimal point, else it is None."""

    value: Fraction
    places: int | None = None


class Constant(Expression):
    """Euler's number `e`, the imaginary unit `i`, `pi`, or `infinity`."""

    name: str


class Symbol(Expression):
    """A variable: its letter with subscript, accent and primes (`E_1`, `x'`), or a whole derivative (`D2[x,t]`)."""

    name: str


class Sum(Expression):
    """The sum of its terms."""

    terms: list[Expression]


class Product(Expression):
    """The product of its factors."""

    factors: list[Expression]


class Power(Expression):
    """The base raised to the exponent; a quotient has the exponent -1."""

    base: Expression
    exponent: Expression


class Call(Expression):
    """A known function, or a letter applied to arguments, such as `f(x)` and `I(0)`."""

    function: str
    arguments: list[Expression]


class Quantity(Tree):
    """A value with a unit: canonical names with their powers, as `ladle.grading.units` spells them."""

    value: Expression
    unit: dict[str, int]


class BaseNumeral(Tree):
    """Digits in a stated base, such as `2516_8`."""

    digits: str
    base: int

    def number(self) -> Number | None:
        """Return the number; None where the base lacks a digit."""
        if not 2 <= self.base <= 36 or any(int(digit) >= self.base for digit in self.digits):
            return None
        return Number(Fraction(int(self.digits, self.base)))


class ClockTime(Tree):
    """A time of day; `half` is `am`, `pm` or None where the text does not say."""

    hour: int
    minute: int
    half: str | None

    def minute_of_day(self) -> int | None:
        """Return the minutes since midnight; None where the half of the day is unsaid."""
        if self.half is None and 1 <= self.hour <= 12:
            return None
        return (self.hour % 12 if self.half else self.hour) * 60 + self.minute + 720 * (self.half == "pm")

    def ratio(self) -> Number | None:
        """Return the ratio that two numbers and a colon may also be; None where they cannot."""
        return None if self.half or not self.minute else Number(Fraction(self.hour, self.minute))


class Date(Tree):
    """A day of a year that may be unsaid."""

    month: int
    day: int
    year: int | None


class Ratio(Tree):
    """`2:3`, or of more parts."""

    parts: list[Expression]


class Text(Tree):
    """Words, lower-cased, without articles and punctuation."""

    words: str


class Listing(Tree):
    """Values one after the other, without brackets; `joined_by` is `,`, `or` or `and`."""

    items: list[Tree]
    joined_by: str


class Ordered(Tree):
    """A tuple, point or vector: `(1, 2)`."""

    items: list[Tree]


class Unordered(Tree):
    """A set in braces."""

    items: list[Tree]


class Interval(Tree):
    """A real interval; an end at infinity is open."""

    low: Tree
    high: Tree
    low_closed: bool
    high_closed: bool


class Union(Tree):
    """The union of intervals and sets."""

    parts: list[Tree]


class Matrix(Tree):
    """Rows of equal length."""

    rows: list[list[Expression]]


class Relation(Tree):
    """`sides[0] operators[0] sides[1] operators[1] ...`, with operators among = < > <= >= != ~ in."""

    sides: list[Tree]
    operators: list[str]


def negative(value: Expression) -> Expression:
    """Return the value with the opposite sign; that of a literal is a literal."""
    if isinstance(value, Number):
        return Number(-value.value, value.places)
    return Product([Number(Fraction(-1)), value])


def quotient(above: Expression, below: Expression) -> Product:
    """Return one expression over the other."""
    return Product([above, Power(below, Number(Fraction(-1)))])


def difference(left: Expression, right: Expression) -> Sum:
    """Return one expression less the other."""
    return Sum([left, negative(right)])


def walk(tree: Tree) -> Iterator[Tree]:
    """Yield the tree and every node in it."""
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        else:
            yield node
            for name in node.child_fields:
                pending.append(getattr(node, name))  # noqa: PERF401 - this is half of a comparison's time


def symbols_of(tree: Tree) -> set[str]:
    """Return the names of the symbols anywhere in a tree."""
    return {node.name for node in walk(tree) if isinstance(node, Symbol)}


def substitute(node: Any, values: Mapping[str, Expression]) -> Any:
    """Return a tree, or a list of trees, with the mapping's expressions in place of the symbols and constants named."""
    if isinstance(node, (Symbol, Constant)):
        return values.get(node.name, node)
    if isinstance(node, list):
        return [substitute(item, values) for item in node]
    if isinstance(node, Tree) and values:
        make: Any = type(node)
        return make(*(substitute(getattr(node, name), values) for name in make.__match_args__))
    return node


# Tokens.

# Brackets nested deeper than this are not an answer; it keeps the reader's recursion far from Python's limit.
MAX_DEPTH = 40
MAX_POWER_OF_TEN = 4000  # a number with a larger exponent is not an answer; it bounds the size of exact fractions


class Token(NamedTuple):
    """A piece of the text: kind is number, word, run, face, command, sign, or the name of an environment."""

    kind: str
    text: str


_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
    rf"|\\(?:{TEXT_COMMANDS})\s*\{{(?P<word>[^{{}}]*)\}}"
    r"|\\(?P<environment>(?:begin|end)\s*\{[a-zA-Z*]+\})"
    r"|\\math(?:bb|cal|frak|scr)\s*\{(?P<face>[A-Za-z])\}"
    r"|\\(?P<command>[a-zA-Z]+|[{}|\\])"
    r"|(?P<run>[A-Za-z]+)"
    r"|(?P<sign>[-+*/^_(){}\[\]|=<>,;:!'%&\"])"
    r")"
)
_DEPTH_STEPS = {text: 1 for text in ("(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil", "\\begin")} | {
    text: -1 for text in (")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil", "\\end")
}


def tokenize(text: str) -> list[Token]:
    """Return the tokens of the text.

    Raises:
        Unreadable: a character is foreign to the language, or brackets do not match.
        TooLarge: brackets nest too deep.
    """
    tokens: list[Token] = []
    position = depth = 0
    while position < len(text) and depth >= 0:
        found = _TOKEN.match(text, position)
        if found is None:
            raise Unreadable(f"unexpected {text[position : position + 12].strip()!r}")
        position = found.end()
        token = _make_token(found, is_last=not text[position:].strip())
        depth += depth_step(token)
        if depth > MAX_DEPTH:
            raise TooLarge(f"brackets nest deeper than {MAX_DEPTH}")
        if token.text:  # an empty text group says nothing
            tokens.append(token)
    if depth != 0:
        raise Unreadable("brackets do not match")
    return tokens


def _make_token(found: re.Match[str], is_last: bool) -> Token:
    """Return the token found; a text group that names a function is that function, unless nothing follows (`5 min`)."""
    kind = found.lastgroup or ""
    text = found[kind]
    if kind == "environment":
        command, _, name = text.partition("{")
        return Token(name.rstrip("}*"), "\\" + command.strip())
    if kind == "word":
        text = " ".join(text.replace("\\", " ").split())
        kind = "command" if text in FUNCTION_NAMES and not is_last else "word"
    return Token(kind, "\\" + text if kind == "command" else text)


def depth_step(token: Token) -> int:
    """Return 1 for an opening bracket, -1 for a closing one, 0 for anything else."""
    return _DEPTH_STEPS.get(token.text, 0) if token.kind != "word" else 0


def split_at(tokens: Sequence[Token], texts: Container[str]) -> tuple[list[list[Token]], list[Token]]:
    """Cut at the tokens of these texts that are outside all brackets; return the pieces and what was between them."""
    pieces: list[list[Token]] = [[]]
    separators: list[Token] = []
    depth = 0
    for token in tokens:
        depth += depth_step(token)
        if depth == 0 and (token.text.strip(" ,").lower() if token.kind == "word" else token.text) in texts:
            pieces.append([])
            separators.append(token)
        else:
            pieces[-1].append(token)
    return pieces, separators


def find_closing(tokens: Sequence[Token], start: int) -> int:
    """Return the index of the bracket that closes the one at `start`; kinds may differ, as in `(3, 4]`.

    Raises:
        Unreadable: it is never closed.
    """
    depths = accumulate(depth_step(token) for token in tokens[start:])
    closing = next((index for index, depth in enumerate(depths, start) if depth == 0), None)
    if closing is None:
        raise Unreadable(f"{tokens[start].text} is not closed")
    return closing


def read_literal(text: str) -> Number:
    """Return the exact value of `12`, `.35`, `-1.` or `4.5e33`, and how many decimals it shows.

    Raises:
        Unreadable: it has no digits, as what is left of `\\frac.9` after its first character.
        TooLarge: its power of ten is beyond `MAX_POWER_OF_TEN`.
    """
    if text.isdigit():
        return Number(Fraction(int(text)))
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    if not whole + decimals:
        raise Unreadable(f"{text!r} is not a number")
    if len(exponent) > 6 or abs(int(exponent or 0)) > MAX_POWER_OF_TEN:
        raise TooLarge(f"a power of ten beyond {MAX_POWER_OF_TEN}")
    digits, shift = int(whole + decimals), int(exponent or 0) - len(decimals)
    value = Fraction(digits * 10**shift) if shift >= 0 else Fraction(digits, 10**-shift)
    return Number(value, None if exponent or not decimals else len(decimals))


_MIXED = re.compile(r"(?:\\frac (?:\{ (\d+) \} \{ (\d+) \}|(\d) ?(\d))|(\d+) / (\d+))(?!\S)")
_REPEATING = re.compile(r"\\(?:overline|bar) \{ (\d+) \}")


def read_number(token: Token, following: Sequence[Token]) -> tuple[Number, int]:
    """Return the number that begins with a token of that kind, and how many of the following tokens belong to it.

    A fraction of digits after a whole number is added to it (`3\\frac{1}{2}`, `3 1/2`), also an improper one:
    1\\frac{9}{5} is more often a misprint of a mixed number than a product. Digits under a bar repeat.
    """
    after = " ".join("?" if piece.kind == "word" else piece.text for piece in following[:7])
    if token.text.isdigit() and (found := _MIXED.match(after)):
        above, below = (int(digits) for digits in found.groups() if digits)
        if below:
            return Number(int(token.text) + Fraction(above, below)), found[0].count(" ") + 1
    literal = read_literal(token.text)
    if "." in token.text and (found := _REPEATING.match(after)):
        places = len(token.text.partition(".")[2])
        return Number(literal.value + Fraction(int(found[1]), 10**places * (10 ** len(found[1]) - 1))), 4
    return literal, 0
