"""What a normalised answer can be read as: values, and the structures built of them.

Values (`Expression`) are numbers and formulas; everything else says how values stand together. Nodes are plain data:
`ladle.grading.comparing` decides what they are worth and whether two are the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


class Unreadable(ValueError):
    """The text is no mathematics that anything should read; the message says where the reader left it."""


class Foreign(Unreadable):
    """The text holds a construct that this reader does not know, such as an integral; another may."""


class TooLarge(ArithmeticError):
    """The text or its value is beyond what is read or computed for an answer; nothing else should try either."""


@dataclass(slots=True)
class Number:
    """A rational literal; `places` counts the decimals of a number written with a decimal point, else it is None."""

    value: Fraction
    places: int | None = None


@dataclass(slots=True)
class Constant:
    """Euler's number `e`, the imaginary unit `i`, `pi`, or `infinity`."""

    name: str


@dataclass(slots=True)
class Symbol:
    """A variable: its letter with subscript, accent and primes (`E_1`, `x'`), or a whole derivative (`D2[x,t]`)."""

    name: str


@dataclass(slots=True)
class Sum:
    """The sum of its terms."""

    terms: list[Expression]


@dataclass(slots=True)
class Product:
    """The product of its factors."""

    factors: list[Expression]


@dataclass(slots=True)
class Power:
    """The base raised to the exponent; a quotient has the exponent -1."""

    base: Expression
    exponent: Expression


@dataclass(slots=True)
class Call:
    """A known function, or a letter applied to arguments, such as `f(x)` and `I(0)`."""

    function: str
    arguments: list[Expression]


Expression = Number | Constant | Symbol | Sum | Product | Power | Call
EXPRESSIONS = (Number, Constant, Symbol, Sum, Product, Power, Call)
"""The classes of `Expression`, for `isinstance`."""


@dataclass(slots=True)
class Quantity:
    """A value with a unit: canonical base units with their powers, as `ladle.grading.reading.units` spells them."""

    value: Expression
    unit: dict[str, int]


@dataclass(slots=True)
class BaseNumeral:
    """Digits in a stated base, such as `2516_8`."""

    digits: str
    base: int


@dataclass(slots=True)
class ClockTime:
    """A time of day; `half` is `am`, `pm` or None where the text does not say."""

    hour: int
    minute: int
    half: str | None


@dataclass(slots=True)
class Text:
    """Words, lower-cased, without articles and punctuation."""

    words: str


@dataclass(slots=True)
class Listing:
    """Values one after the other, without brackets; `joined_by` is `,`, `or` or `and`."""

    items: list[Tree]
    joined_by: str


@dataclass(slots=True)
class Ordered:
    """A tuple, point or vector: `(1, 2)`."""

    items: list[Tree]


@dataclass(slots=True)
class Unordered:
    """A set in braces."""

    items: list[Tree]


@dataclass(slots=True)
class Interval:
    """A real interval; an end at infinity is open."""

    low: Expression
    high: Expression
    low_closed: bool
    high_closed: bool


@dataclass(slots=True)
class Union:
    """The union of intervals and sets."""

    parts: list[Tree]


@dataclass(slots=True)
class Matrix:
    """Rows of equal length."""

    rows: list[list[Expression]]


@dataclass(slots=True)
class Relation:
    """`sides[0] operators[0] sides[1] operators[1] ...`, with operators among = < > le ge ne approx in."""

    sides: list[Tree]
    operators: list[str]


Tree = (
    Expression
    | Quantity
    | BaseNumeral
    | ClockTime
    | Text
    | Listing
    | Ordered
    | Unordered
    | Interval
    | Union
    | Matrix
    | Relation
)
