"""Names of variables: a letter with its accents, subscripts and primes; a derivative is a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ladle.grading.reading.tokens import Token, find_closing
from ladle.grading.reading.tree import Foreign, Unreadable

_ACCENTS = {"\\bar": "bar", "\\overline": "bar", "\\hat": "hat", "\\widehat": "hat", "\\tilde": "tilde", "\\vec": "vec",
            "\\overrightarrow": "vec", "\\widetilde": "tilde"}  # fmt: skip
_DOTS = {"\\dot": 1, "\\ddot": 2}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
SYMBOL_COMMANDS = (
    frozenset("\\" + name for name in f"{_GREEK} pi hbar ell odot oplus angle imath jmath triangle aleph mho".split())
    | _ACCENTS.keys()
    | _DOTS.keys()
)
_CONSTANTS = {"e": "e", "i": "i", "\\pi": "pi", "\\imath": "i"}


class Name(NamedTuple):
    """A variable or constant and the index of the token after it."""

    text: str
    end: int
    constant: bool


def read_name(tokens: Sequence[Token], start: int) -> Name:
    """Read the name that begins at `start`: `x`, `E_{1}`, `\\lambda_{\\text{red}}`, `\\dot{x}_0`, `y''`.

    Raises:
        Unreadable: an accent or subscript does not hold together.
    """
    if start >= len(tokens):
        raise Unreadable("the text ends where a name should be")
    token = tokens[start]
    text, end, order = token.text, start + 1, 0
    if token.kind == "face":
        text = f"face {text}"
    elif token.kind == "word" and len(text) > 1:
        text = f"text {text.lower()}"
    elif text in _ACCENTS or text in _DOTS:
        inside, end = _take_group(tokens, end)
        order = _DOTS.get(token.text, 0)
        text = inside if order else f"{_ACCENTS[token.text]} {inside}"
    primes, end = _count_primes(tokens, end)
    subscript, end = _read_subscript(tokens, end)
    more_primes, end = _count_primes(tokens, end)
    order += primes + more_primes
    if order:
        return Name(f"D{order}[{text}{subscript}]", end, constant=False)
    if text in _CONSTANTS and not subscript:
        return Name(_CONSTANTS[text], end, constant=True)
    return Name(text + subscript, end, constant=False)


def _count_primes(tokens: Sequence[Token], start: int) -> tuple[int, int]:
    end = start
    while end < len(tokens) and tokens[end].text == "'":
        end += 1
    return end - start, end


def _read_subscript(tokens: Sequence[Token], start: int) -> tuple[str, int]:
    if start >= len(tokens) or tokens[start].text != "_":
        return "", start
    text, end = _take_group(tokens, start + 1)
    return f"_{text}", end


def _take_group(tokens: Sequence[Token], start: int) -> tuple[str, int]:
    if start >= len(tokens):
        raise Unreadable("the text ends after an accent or a subscript mark")
    if tokens[start].text != "{":
        return tokens[start].text, start + 1
    end = find_closing(tokens, start)
    return "".join(token.text for token in tokens[start + 1 : end]), end + 1


def derivative_name(above: Sequence[Token], below: Sequence[Token]) -> str | None:
    """Return the name of the derivative that a fraction spells (`dx/dt`, `d^2 x/dt^2`); None of a quotient."""
    if [token.text for token in (*above[:1], *below[:1])] != ["d", "d"] or len(above) < 2 or len(below) < 2:
        return None
    order, start = _read_order(above, 1)
    if start >= len(above):
        return None
    function, variable = read_name(above, start), read_name(below, 1)
    if function.end != len(above) or _read_order(below, variable.end) != (order, len(below)):
        return None
    return f"D{order}[{function.text},{variable.text}]"


def _read_order(tokens: Sequence[Token], start: int) -> tuple[int, int]:
    """Return the order of differentiation that stands at `start`, 1 where none does, and the index after it."""
    if start >= len(tokens) or tokens[start].text != "^":
        return 1, start
    text, end = _take_group(tokens, start + 1)
    if not text.isdigit():
        raise Foreign("a derivative of symbolic order")
    return int(text), end
