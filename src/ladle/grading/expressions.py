"""Read the tokens of one value into an expression: a recursive-descent parser for the mathematics that answers hold.

    sum     = term (("+" | "-") term)*
    term    = factor (("*" | "/" | nothing) factor)*        so that 1/2x is (1/2)x
    factor  = primary ("^" exponent | "!")*
    primary = number | name | "(" sum ")" | \\frac | \\sqrt | \\sin ... | |sum| | ...

A name is a letter with its accents, subscripts and primes; a derivative is a name of its own. What the parser does not
know (integrals, sums, limits, cases) it refuses; math-verify gets those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import chain

from ladle.grading import nodes
from ladle.grading.normalise import FUNCTION_NAMES

_GROUPS = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_CLOSING = _GROUPS | {"\\{": "\\}"}
_ROUNDING = {"\\lfloor": "floor", "\\lceil": "ceil"}
_TIMES = frozenset({"*", "\\cdot", "\\times"})
_OPERATORS = _TIMES | frozenset("+-/:)]}!^_,;=<>'%&\"") | {"\\bmod", "\\}", "\\rfloor", "\\rceil", "\\\\"}
_FUNCTIONS = frozenset("\\" + name for name in FUNCTION_NAMES)
_SEVERAL_ARGUMENTS = frozenset({"gcd", "lcm", "max", "min"})
_FUNCTION_LETTERS = frozenset({*"fghFGH", "\\Gamma"})
_LONGEST_PRODUCT = 4  # letters side by side that are factors; more of them are a word
_ACCENTS = {
    **{"\\bar": "bar", "\\overline": "bar", "\\hat": "hat", "\\widehat": "hat", "\\tilde": "tilde"},
    **{"\\widetilde": "tilde", "\\vec": "vec", "\\overrightarrow": "vec"},
}
_FIGURES = frozenset({"\\angle", "\\triangle"})
_DOTS = {"\\dot": 1, "\\ddot": 2}
_LETTERS = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega pi hbar ell odot oplus imath jmath aleph mho"""
_NAME_COMMANDS = frozenset("\\" + name for name in _LETTERS.split()) | _ACCENTS.keys() | _DOTS.keys() | _FIGURES
_CONSTANTS = {"e": "e", "i": "i", "\\pi": "pi", "\\imath": "i"}


def read_expression(tokens: Sequence[nodes.Token]) -> nodes.Expression:
    """Return the value that all the tokens together spell.

    Raises:
        Unreadable: they spell none, or only some of them do.
    """
    for token in tokens:
        if token.kind == "run" and len(token.text) > _LONGEST_PRODUCT and not token.text.isupper():
            raise nodes.Unreadable(f"the word {token.text!r} in a formula")
    letters = ([token] if token.kind != "run" else [nodes.Token("run", one) for one in token.text] for token in tokens)
    reader = _Reader([*chain.from_iterable(letters)])
    value = reader.read_sum()
    if not reader.is_at_end:
        raise nodes.Unreadable(f"{reader.tokens[reader.position].text!r} has no meaning there")
    return value


def is_foreign_command(token: nodes.Token) -> bool:
    """Whether the token is a command that no expression holds, such as `\\int`."""
    return token.kind == "command" and token.text not in _KNOWN_COMMANDS


class _Reader:
    """A position in the tokens of one value."""

    def __init__(self, tokens: list[nodes.Token]) -> None:
        self.tokens = tokens
        self.position = 0

    @property
    def is_at_end(self) -> bool:
        """Whether all tokens are taken."""
        return self.position >= len(self.tokens)

    @property
    def next(self) -> str:
        """The text of the next token; the empty string at the end and before a word."""
        if self.is_at_end or self.tokens[self.position].kind == "word":
            return ""
        return self.tokens[self.position].text

    def take(self) -> nodes.Token:
        if self.is_at_end:
            raise nodes.Unreadable("the text ends too early")
        self.position += 1
        return self.tokens[self.position - 1]

    def read_sum(self) -> nodes.Expression:
        terms = [self._read_signed(self._read_term)]
        while self.next in ("+", "-"):
            terms.append(self._read_signed(self._read_term))
        value = terms[0] if len(terms) == 1 else nodes.Sum(terms)
        return nodes.Call("mod", [value, self.read_sum()]) if self._takes("\\bmod") else value

    def _read_signed(self, read: Callable[[], nodes.Expression]) -> nodes.Expression:
        is_negative = False
        while self.next in ("+", "-"):
            is_negative ^= self.take().text == "-"
        value = read()
        return nodes.negative(value) if is_negative else value

    def _read_term(self) -> nodes.Expression:
        factors = [self._read_factor()]
        while True:
            if self.next in _TIMES:
                self.take()
                factors.append(self._read_signed(self._read_factor))
            elif self._takes("/"):
                factors.append(_inverse(self._read_signed(self._read_factor)))
            elif self._at_factor():
                factors.append(self._read_factor())
            else:
                return factors[0] if len(factors) == 1 else nodes.Product(factors)

    def _at_factor(self) -> bool:
        if self.is_at_end:
            return False
        token = self.tokens[self.position]
        if token.kind == "number":
            return self.tokens[self.position - 1].kind != "number"
        return token.kind != "sign" and token.text not in _OPERATORS or token.text in ("(", "[", "{", "|")

    def _read_factor(self) -> nodes.Expression:
        value = self._read_primary()
        while self.next in ("^", "!"):
            if self.take().text == "!":
                value = nodes.Call("double factorial" if self._takes("!") else "factorial", [value])
                continue
            if self._takes("\\circ") or self._takes("{", "\\circ", "}"):
                value = nodes.Product([value, nodes.Constant("pi"), nodes.Number(Fraction(1, 180))])
            else:
                value = nodes.Power(value, self._read_signed(self._read_exponent))
        return value

    def _read_exponent(self) -> nodes.Expression:
        exponent = self._read_primary()
        if self._takes("^"):
            exponent = nodes.Power(exponent, self._read_signed(self._read_exponent))
        return exponent

    def _read_primary(self) -> nodes.Expression:
        token = self.take()
        if token.kind == "number":
            if self.next == "_":
                raise nodes.Unreadable("a number with a base inside an expression")
            number, width = nodes.read_number(token, self.tokens[self.position : self.position + 7])
            self.position += width
            return number
        following = self.tokens[self.position : self.position + 4]
        if token.text == "\\overline" and re.fullmatch("{[A-Z]{2}}", "".join(piece.text for piece in following)):
            self.position += 4  # a segment, named by its ends in any order, and often without the bar
            return read_expression(following[1:3])
        if token.kind in ("run", "face", "word") or token.text in _NAME_COMMANDS:
            self.position -= 1
            name = self.read_name()
            if isinstance(name, nodes.Constant):
                return name
            if name.name in _FUNCTION_LETTERS and self._takes("^", "{", "-", "1", "}", "("):
                self.position -= 1
                name = nodes.Symbol(f"inverse {name.name}")
            return self._read_call(name) or name
        if token.text in _GROUPS:
            value = read_expression(self._take_bracketed())
            return nodes.Call(_ROUNDING[token.text], [value]) if token.text in _ROUNDING else value
        if token.text in _FUNCTIONS:
            return self._read_function(token.text[1:])
        read = _CONSTRUCTS.get(token.text)
        if read is None:
            raise nodes.Unreadable(f"{token.text!r} is not known here")
        return read(self)

    # Names.

    def read_name(self) -> nodes.Symbol | nodes.Constant:
        """Read `x`, `E_{1}`, `\\lambda_{\\text{red}}`, `\\dot{x}_0` or `y''`."""
        token = self.take()
        text, order = token.text, 0
        if token.kind == "face":
            text = f"face {text}"
        elif token.kind == "word" and len(text) > 1:
            text = f"text {text.lower()}"
        elif text in _DOTS:
            text, order = self._take_label(), _DOTS[text]
        elif text in _ACCENTS:
            text = f"{_ACCENTS[text]} {self._take_label()}"
        elif text in _FIGURES:
            label = self._take_label() if self.next == "{" else ""
            while self.next.isupper() and len(self.next) == 1:
                label += self.take().text
            # An angle has its vertex in the middle, a triangle has none.
            label = min(label, label[::-1]) if text == "\\angle" else "".join(sorted(label))
            text = f"{text} {label}"
        order += self._take_primes()
        subscript = f"_{self._take_label()}" if self._takes("_") else ""
        order += self._take_primes()
        if not order and not subscript and text in _CONSTANTS:
            return nodes.Constant(_CONSTANTS[text])
        return nodes.Symbol(f"D{order}[{text}{subscript}]" if order else text + subscript)

    def _take_primes(self) -> int:
        count = 0
        while self._takes("'"):
            count += 1
        return count

    def _take_label(self) -> str:
        """Take what an accent, a subscript or an order of differentiation applies to: one token or a group."""
        return "".join(token.text for token in self._take_bracketed()) if self._takes("{") else self.take().text

    def _takes(self, *texts: str) -> bool:
        """Whether the next tokens are these, which are then taken."""
        following = self.tokens[self.position : self.position + len(texts)]
        if [token.text for token in following if token.kind != "word"] != [*texts]:
            return False
        self.position += len(texts)
        return True

    def take_order(self) -> int:
        """Take the order of differentiation, 1 where none is written."""
        if not self._takes("^"):
            return 1
        text = self._take_label()
        if not text.isdigit():
            raise nodes.Foreign("a derivative of symbolic order")
        return int(text)

    def _read_call(self, name: nodes.Symbol) -> nodes.Call | None:
        """Read the arguments of a name that is a function, None of one that is a factor.

        A function is `f(...)`, any `I(0)` or `x(t)`, since nobody writes a product with one letter in parentheses,
        any letter before a list (`C(n,2)`), and whatever stands in braces and parentheses, as sympy prints calls.
        """
        is_braced = [token.text for token in self.tokens[self.position : self.position + 2]] == ["{", "("]
        if self.next != "(" and not is_braced:
            return None
        closing = nodes.find_closing(self.tokens, self.position)
        inside = self.tokens[self.position + 1 : closing]
        if is_braced:
            if nodes.find_closing(inside, 0) != len(inside) - 1:
                return None
            inside = inside[1:-1]
        pieces, commas = nodes.split_at(inside, (",",))
        if not (is_braced or commas or name.name in _FUNCTION_LETTERS or _is_plain_argument(inside)):
            return None
        self.position = closing + 1
        arguments = [read_expression(piece) for piece in pieces]
        match name.name, arguments:
            case "C", [_, _]:
                return nodes.Call("binomial", arguments)
            case "P", [nodes.Number(), _] | [_, nodes.Number()]:  # P(6,3) counts arrangements, P(x,y) may be anything
                return nodes.Call("permutation", arguments)
            case "\\Gamma", _:
                return nodes.Call("gamma", arguments)
            case _:
                return nodes.Call(f"apply {name.name}", arguments)

    # Groups, fractions, roots, functions.

    def _take_bracketed(self) -> list[nodes.Token]:
        """Take what stands in the bracket just opened, and the bracket that closes it."""
        start = self.position - 1
        opening, closing = self.tokens[start].text, nodes.find_closing(self.tokens, start)
        if self.tokens[closing].text != _CLOSING[opening]:
            raise nodes.Unreadable(f"{opening} is closed by {self.tokens[closing].text}")
        self.position = closing + 1
        return self.tokens[start + 1 : closing]

    def _take_argument(self) -> list[nodes.Token]:
        """Take a LaTeX argument: a group in braces, or else one token, of a number only its first digit."""
        token = self.take()
        if token.text == "{":
            return self._take_bracketed()
        if token.kind == "number" and len(token.text) > 1:
            self.position -= 1
            self.tokens[self.position] = nodes.Token("number", token.text[1:])
            return [nodes.Token("number", token.text[0])]
        return [token]

    def read_fraction(self) -> nodes.Expression:
        above, below = self._take_argument(), self._take_argument()
        if [token.text for token in (*above, *below[:1])] == ["d", "d"]:  # `\\frac{d}{dt} x`
            above = [*above, nodes.Token("run", self.read_name().name)]
            return _derivative(above, below) or nodes.Symbol(above[1].text)
        return _derivative(above, below) or nodes.quotient(read_expression(above), read_expression(below))

    def read_root(self) -> nodes.Expression:
        degree = read_expression(self._take_bracketed()) if self._takes("[") else nodes.Number(Fraction(2))
        inside = self._take_bracketed() if self._takes("(") else self._take_argument()
        return nodes.Call("root", [read_expression(inside), degree])

    def read_binomial(self) -> nodes.Expression:
        return nodes.Call("binomial", [read_expression(self._take_argument()), read_expression(self._take_argument())])

    def read_absolute(self) -> nodes.Expression:
        inside: list[nodes.Token] = []
        while not self._takes("|"):
            inside.append(self.take())
        return nodes.Call("abs", [read_expression(inside)])

    def _read_function(self, name: str) -> nodes.Expression:
        power: nodes.Expression | None = None
        base: list[nodes.Expression] = []
        while self.next in ("^", "_"):
            if self.take().text == "^":
                power = self._read_signed(self._read_exponent)
            else:
                base = [read_expression(self._take_argument())]
        if isinstance(power, nodes.Number) and power.value == -1 and not name.startswith("ar"):
            name, power = "arc" + name, None
        if self.next in ("(", "[", "{", "\\{"):
            self.take()
            inside = self._take_bracketed()
            pieces = nodes.split_at(inside, (",",))[0] if name in _SEVERAL_ARGUMENTS else [inside]
            arguments = [read_expression(piece) for piece in pieces]
        else:
            factors = [self._read_signed(self._read_factor)]
            while self._at_factor() and self.next not in _FUNCTIONS and self.next != "(":
                factors.append(self._read_factor())
            arguments = [factors[0] if len(factors) == 1 else nodes.Product(factors)]
        value = nodes.Call(name, arguments + base)
        return value if power is None else nodes.Power(value, power)


def _inverse(value: nodes.Expression) -> nodes.Power:
    return nodes.Power(value, nodes.Number(Fraction(-1)))


def _is_plain_argument(tokens: Sequence[nodes.Token]) -> bool:
    """Whether the tokens are one number, or letters between commas."""
    letters = [token for token in tokens if token.text != ","]
    are_letters = all(token.kind == "run" or token.text in _NAME_COMMANDS - {"\\pi"} for token in letters)
    is_number = len(tokens) == 1 and tokens[0].kind == "number"
    return is_number or are_letters and 2 * len(letters) == len(tokens) + 1


def _derivative(above: Sequence[nodes.Token], below: Sequence[nodes.Token]) -> nodes.Symbol | None:
    """Return the derivative that a fraction spells (`dx/dt`, `d^2 x/dt^2`); None of a quotient."""
    if [token.text for token in (*above[:1], *below[:1])] != ["d", "d"] or len(above) < 2 or len(below) < 2:
        return None
    upper, lower = _Reader(list(above[1:])), _Reader(list(below[1:]))
    order = upper.take_order()
    if upper.is_at_end:
        return None
    function, variable = upper.read_name().name, lower.read_name().name
    is_one = upper.is_at_end and lower.take_order() == order and lower.is_at_end
    return nodes.Symbol(f"D{order}[{function},{variable}]") if is_one else None


_CONSTRUCTS: dict[str, Callable[[_Reader], nodes.Expression]] = {
    "\\frac": _Reader.read_fraction,
    "\\sqrt": _Reader.read_root,
    "\\binom": _Reader.read_binomial,
    "|": _Reader.read_absolute,
    "\\infty": lambda reader: nodes.Constant("infinity"),
}
_KNOWN_COMMANDS = _NAME_COMMANDS | _FUNCTIONS | _GROUPS.keys() | _OPERATORS | _CONSTRUCTS.keys()
