"""What a normalised answer can be read as: values, and the structures built of them.

Values (`Expression`) are numbers and formulas; every other `Tree` says how values belong together. Nodes are plain
data: `ladle.grading.equivalence` decides whether two of them are the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


class Unreadable(ValueError):
    """The text is not mathematics that anything should read; the message says where the reader stopped."""


class Foreign(Unreadable):
    """The text holds a construct that this reader does not know, such as an integral; another reader may."""


class TooLarge(ArithmeticError):
    """The text or its value is beyond what is read or computed for an answer; nothing else should try either."""


class Tree:
    """Anything that an answer can be."""

    __slots__: tuple[str, ...] = ()


class Expression(Tree):
    """A single value."""

    __slots__ = ()


@dataclass(slots=True)
class Number(Expression):
    """A rational literal; `places` counts the decimals of a number written with a decimal point, else it is None."""

    value: Fraction
    places: int | None = None


@dataclass(slots=True)
class Constant(Expression):
    """Euler's number `e`, the imaginary unit `i`, `pi`, or `infinity`."""

    name: str


@dataclass(slots=True)
class Symbol(Expression):
    """A variable: its letter with subscript, accent and primes (`E_1`, `x'`), or a whole derivative (`D2[x,t]`)."""

    name: str


@dataclass(slots=True)
class Sum(Expression):
    """The sum of its terms."""

    terms: list[Expression]


@dataclass(slots=True)
class Product(Expression):
    """The product of its factors."""

    factors: list[Expression]


@dataclass(slots=True)
class Power(Expression):
    """The base raised to the exponent; a quotient has the exponent -1."""

    base: Expression
    exponent: Expression


@dataclass(slots=True)
class Call(Expression):
    """A known function, or a letter applied to arguments, such as `f(x)` and `I(0)`."""

    function: str
    arguments: list[Expression]


@dataclass(slots=True)
class Quantity(Tree):
    """A value with a unit: canonical names with their powers, as `ladle.grading.units` spells them."""

    value: Expression
    unit: dict[str, int]


@dataclass(slots=True)
class BaseNumeral(Tree):
    """Digits in a stated base, such as `2516_8`."""

    digits: str
    base: int


@dataclass(slots=True)
class ClockTime(Tree):
    """A time of day; `half` is `am`, `pm` or None where the text does not say."""

    hour: int
    minute: int
    half: str | None


@dataclass(slots=True)
class Text(Tree):
    """Words, lower-cased, without articles and punctuation."""

    words: str


@dataclass(slots=True)
class Listing(Tree):
    """Values one after the other, without brackets; `joined_by` is `,`, `or` or `and`."""

    items: list[Tree]
    joined_by: str


@dataclass(slots=True)
class Ordered(Tree):
    """A tuple, point or vector: `(1, 2)`."""

    items: list[Tree]


@dataclass(slots=True)
class Unordered(Tree):
    """A set in braces."""

    items: list[Tree]


@dataclass(slots=True)
class Interval(Tree):
    """A real interval; an end at infinity is open."""

    low: Expression
    high: Expression
    low_closed: bool
    high_closed: bool


@dataclass(slots=True)
class Union(Tree):
    """The union of intervals and sets."""

    parts: list[Tree]


@dataclass(slots=True)
class Matrix(Tree):
    """Rows of equal length."""

    rows: list[list[Expression]]


@dataclass(slots=True)
class Relation(Tree):
    """`sides[0] operators[0] sides[1] operators[1] ...`, with operators among = < > <= >= != ~ in."""

    sides: list[Tree]
    operators: list[str]


def negative(value: Expression) -> Expression:
    """Return the value with the opposite sign; that of a literal is a literal."""
    if isinstance(value, Number):
        return Number(-value.value, value.places)
    return Product([Number(Fraction(-1)), value])


def walk(tree: Tree) -> Iterator[Tree]:
    """Yield the tree and every node in it."""
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, Tree):
            yield node
            pending.extend(getattr(node, name) for name in node.__slots__)


def symbols_of(tree: Tree) -> set[str]:
    """Return the names of the symbols anywhere in a tree."""
    return {node.name for node in walk(tree) if isinstance(node, Symbol)}


def rename(node: Any, names: Mapping[str, str]) -> Any:
    """Return a tree, or a list of them, with its symbols renamed; names that the mapping lacks stay."""
    if isinstance(node, Symbol):
        return Symbol(names.get(node.name, node.name))
    if isinstance(node, list):
        return [rename(item, names) for item in node]
    if isinstance(node, Tree) and names:
        make: Any = type(node)
        return make(*(rename(getattr(node, name), names) for name in node.__slots__))
    return node
