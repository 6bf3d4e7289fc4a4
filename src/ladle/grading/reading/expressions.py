"""Read the tokens of one value into an expression: a recursive-descent parser for the mathematics that answers hold.

    sum     = term (("+" | "-") term)*
    term    = factor (("*" | "/" | nothing) factor)*        so that 1/2x is (1/2)x
    factor  = primary ("^" exponent | "!")*
    primary = number | letter | "(" sum ")" | \\frac | \\sqrt | \\sin ... | |sum| | ...

What it does not know (integrals, sums, limits, cases) it refuses; math-verify gets those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from ladle.grading.reading.literals import read_literal, read_mixed, read_repeating
from ladle.grading.reading.names import SYMBOL_COMMANDS, derivative_name, read_name
from ladle.grading.reading.normalise import FUNCTION_NAMES
from ladle.grading.reading.tokens import Token, find_closing, split_at
from ladle.grading.reading.tree import (
    Call,
    Constant,
    Expression,
    Number,
    Power,
    Product,
    Sum,
    Symbol,
    Unreadable,
)

_PLAIN_CLOSING = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_ARGUMENT_CLOSING = _PLAIN_CLOSING | {"\\{": "\\}"}
_ROUNDING = {"\\lfloor": "floor", "\\lceil": "ceil"}
_TIMES = frozenset({"*", "\\cdot", "\\times"})
_OPERATORS = _TIMES | frozenset("+-/:)]}!^_,;=<>'%&\"") | {"\\}", "\\rfloor", "\\rceil", "\\\\"}
_FUNCTIONS = frozenset("\\" + name for name in FUNCTION_NAMES)
_SEVERAL_ARGUMENTS = frozenset({"gcd", "lcm", "max", "min"})
_FUNCTION_LETTERS = frozenset({*"fghFGH", "\\Gamma"})
_LONGEST_PRODUCT = 4  # letters side by side that are factors; more of them are a word
MINUS_ONE = Fraction(-1)


def read_expression(tokens: Sequence[Token]) -> Expression:
    """Return the value that all the tokens together spell.

    Raises:
        Unreadable: they spell none, or only some of them do.
    """
    reader = _Reader(_separate_letters(tokens))
    value = reader.read_sum()
    if reader.position != len(reader.tokens):
        raise Unreadable(f"{reader.tokens[reader.position].text!r} has no meaning there")
    return value


def _separate_letters(tokens: Sequence[Token]) -> list[Token]:
    separate: list[Token] = []
    for token in tokens:
        if token.kind == "run" and len(token.text) > 1:
            if len(token.text) > _LONGEST_PRODUCT and not token.text.isupper():
                raise Unreadable(f"the word {token.text!r} in a formula")
            separate.extend(Token("run", letter) for letter in token.text)
        else:
            separate.append(token)
    return separate


def negate(value: Expression) -> Expression:
    """Return the negative; that of a literal is a literal."""
    if isinstance(value, Number):
        return Number(-value.value, value.places)
    return Product([Number(MINUS_ONE), value])


class _Reader:
    """A position in the tokens of one value."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0

    @property
    def next(self) -> str:
        """The text of the next token; the empty string at the end and before a word."""
        if self.position < len(self.tokens):
            token = self.tokens[self.position]
            return "" if token.kind == "word" else token.text
        return ""

    def take(self) -> Token:
        if self.position >= len(self.tokens):
            raise Unreadable("the text ends too early")
        self.position += 1
        return self.tokens[self.position - 1]

    def read_sum(self) -> Expression:
        terms = [self._read_signed_term()]
        while self.next in ("+", "-"):
            terms.append(self._read_signed_term())
        return terms[0] if len(terms) == 1 else Sum(terms)

    def _read_signed_term(self) -> Expression:
        negative = False
        while self.next in ("+", "-"):
            negative ^= self.take().text == "-"
        term = self._read_term()
        return negate(term) if negative else term

    def _read_term(self) -> Expression:
        factors = [self._read_factor()]
        while True:
            if self.next in _TIMES:
                self.take()
                factors.append(self._read_signed_factor())
            elif self.next in ("/", ":"):
                self.take()
                factors.append(Power(self._read_signed_factor(), Number(MINUS_ONE)))
            elif self._at_factor():
                factors.append(self._read_factor())
            else:
                return factors[0] if len(factors) == 1 else Product(factors)

    def _at_factor(self) -> bool:
        if self.position >= len(self.tokens):
            return False
        token = self.tokens[self.position]
        if token.kind == "number":
            return self.tokens[self.position - 1].kind != "number"
        return token.kind != "sign" and token.text not in _OPERATORS or token.text in ("(", "[", "{", "|")

    def _read_signed_factor(self) -> Expression:
        negative = False
        while self.next in ("+", "-"):
            negative ^= self.take().text == "-"
        factor = self._read_factor()
        return negate(factor) if negative else factor

    def _read_factor(self) -> Expression:
        value = self._read_primary()
        while self.next in ("^", "!"):
            if self.take().text == "!":
                value = Call("factorial", [value])
            elif self._takes_degree_sign():
                value = Product([value, Constant("pi"), Number(Fraction(1, 180))])
            else:
                value = Power(value, self._read_exponent())
        return value

    def _takes_degree_sign(self) -> bool:
        texts = [token.text for token in self.tokens[self.position : self.position + 3]]
        width = 1 if texts[:1] == ["\\circ"] else 3 if texts == ["{", "\\circ", "}"] else 0
        self.position += width
        return width > 0

    def _read_exponent(self) -> Expression:
        negative = False
        while self.next in ("+", "-"):
            negative ^= self.take().text == "-"
        exponent = self._read_primary()
        if self.next == "^":
            self.take()
            exponent = Power(exponent, self._read_exponent())
        return negate(exponent) if negative else exponent

    def _read_primary(self) -> Expression:
        token = self.take()
        if token.kind == "number":
            return self._read_number(token)
        if token.kind in ("run", "face", "word") or token.text in SYMBOL_COMMANDS:
            self.position -= 1
            return self._read_named()
        if token.text in _PLAIN_CLOSING:
            return self._read_group(token)
        if token.text in _FUNCTIONS:
            return self._read_function(token.text[1:])
        reader = _CONSTRUCTS.get(token.text)
        if reader is None:
            raise Unreadable(f"{token.text!r} is not known here")
        return reader(self)

    def _read_number(self, token: Token) -> Expression:
        if self.next == "_":
            raise Unreadable("a number with a base inside an expression")
        following = self.tokens[self.position : self.position + 7]
        for read in (read_mixed, read_repeating):
            found = read(token, following)
            if found is not None:
                self.position += found.width
                return Number(found.value)
        return read_literal(token.text)

    def _read_named(self) -> Expression:
        name = read_name(self.tokens, self.position)
        self.position = name.end
        if name.constant:
            return Constant(name.text)
        arguments = self._take_call(name.text)
        if arguments is None:
            return Symbol(name.text)
        return _make_call(name.text, _read_arguments(arguments))

    def _take_call(self, name: str) -> list[Token] | None:
        """Take the arguments of a name that is a function, None of one that is a factor.

        A function is `f(...)`, any `I(0)` or `x(t)`, since nobody writes a product with one letter in parentheses,
        any letter before a list (`C(n,2)`), and whatever stands in braces and parentheses, as sympy prints calls.
        """
        braced = (
            self.next == "{" and self.position + 1 < len(self.tokens) and self.tokens[self.position + 1].text == "("
        )
        if self.next != "(" and not braced:
            return None
        closing = find_closing(self.tokens, self.position)
        inside = self.tokens[self.position + 1 : closing]
        if braced:
            if find_closing(inside, 0) != len(inside) - 1:
                return None
            inside = inside[1:-1]
        elif not (name in _FUNCTION_LETTERS or _is_plain_argument(inside) or _is_list(inside)):
            return None
        self.position = closing + 1
        return inside

    def _read_group(self, opening: Token) -> Expression:
        inside = self._take_bracketed()
        value = read_expression(inside)
        return Call(_ROUNDING[opening.text], [value]) if opening.text in _ROUNDING else value

    def _take_bracketed(self) -> list[Token]:
        """Take what stands in the bracket just opened, and the bracket that closes it."""
        start = self.position - 1
        closing = find_closing(self.tokens, start)
        if self.tokens[closing].text != _ARGUMENT_CLOSING[self.tokens[start].text]:
            raise Unreadable(f"{self.tokens[start].text} is closed by {self.tokens[closing].text}")
        self.position = closing + 1
        return self.tokens[start + 1 : closing]

    def _take_argument(self) -> list[Token]:
        """Take a LaTeX argument: a group in braces, or else one token, of a number only its first digit."""
        token = self.take()
        if token.text == "{":
            return self._take_bracketed()
        if token.kind == "number" and len(token.text) > 1:
            self.position -= 1
            self.tokens[self.position] = Token("number", token.text[1:])
            return [Token("number", token.text[0])]
        return [token]

    def read_fraction(self) -> Expression:
        above, below = self._take_argument(), self._take_argument()
        derivative = derivative_name(above, below)
        if derivative is not None:
            return Symbol(derivative)
        if [token.text for token in above] == ["d"] and below[:1] == [Token("run", "d")]:
            name = read_name(self.tokens, self.position)
            self.position = name.end
            return Symbol(derivative_name([*above, Token("run", name.text)], below) or name.text)
        return Product([read_expression(above), Power(read_expression(below), Number(MINUS_ONE))])

    def read_root(self) -> Expression:
        degree: Expression = Number(Fraction(2))
        if self.next == "[":
            self.take()
            degree = read_expression(self._take_bracketed())
        if self.next == "(":
            self.take()
            return Call("root", [read_expression(self._take_bracketed()), degree])
        return Call("root", [read_expression(self._take_argument()), degree])

    def read_binomial(self) -> Expression:
        above, below = self._take_argument(), self._take_argument()
        return Call("binomial", [read_expression(above), read_expression(below)])

    def read_absolute(self) -> Expression:
        inside: list[Token] = []
        while self.next != "|":
            inside.append(self.take())
        self.take()
        return Call("abs", [read_expression(inside)])

    def _read_function(self, name: str) -> Expression:
        power: Expression | None = None
        base: Expression | None = None
        while self.next in ("^", "_"):
            if self.take().text == "^":
                power = self._read_exponent()
            else:
                base = read_expression(self._take_argument())
        if isinstance(power, Number) and power.value == -1 and not name.startswith(("arc", "ar")):
            name, power = "arc" + name, None
        arguments = self._read_function_arguments(name)
        value = Call(name, arguments if base is None else [*arguments, base])
        return value if power is None else Power(value, power)

    def _read_function_arguments(self, name: str) -> list[Expression]:
        if self.next in ("(", "[", "{", "\\{"):
            self.take()
            inside = self._take_bracketed()
            return _read_arguments(inside) if name in _SEVERAL_ARGUMENTS else [read_expression(inside)]
        factors = [self._read_signed_factor()]
        while self._at_factor() and self.next not in _FUNCTIONS and self.next != "(":
            factors.append(self._read_factor())
        return [factors[0] if len(factors) == 1 else Product(factors)]


def _make_call(name: str, arguments: list[Expression]) -> Call:
    """Return the call of a letter: `C(n,2)` counts choices, `P(6,3)` arrangements, `P(x,y)` may be anything."""
    if name == "C" and len(arguments) == 2:
        return Call("binomial", arguments)
    if name == "P" and len(arguments) == 2 and any(isinstance(argument, Number) for argument in arguments):
        return Call("permutation", arguments)
    return Call("gamma" if name == "\\Gamma" else f"apply {name}", arguments)


def _is_list(tokens: Sequence[Token]) -> bool:
    return len(split_at(tokens, lambda token: token.text == ",")[0]) > 1


def _is_plain_argument(tokens: Sequence[Token]) -> bool:
    """Whether the tokens are one number, or letters between commas."""
    if len(tokens) == 1 and tokens[0].kind == "number":
        return True
    letters = [token for token in tokens if token.text != ","]
    return 2 * len(letters) == len(tokens) + 1 and all(
        token.kind == "run" or token.text in SYMBOL_COMMANDS and token.text != "\\pi" for token in letters
    )


def _read_arguments(tokens: Sequence[Token]) -> list[Expression]:
    pieces, _ = split_at(tokens, lambda token: token.text == ",")
    return [read_expression(piece) for piece in pieces]


_CONSTRUCTS: dict[str, Callable[[_Reader], Expression]] = {
    "\\frac": _Reader.read_fraction,
    "\\sqrt": _Reader.read_root,
    "\\binom": _Reader.read_binomial,
    "|": _Reader.read_absolute,
    "\\infty": lambda reader: Constant("infinity"),
}
_KNOWN_COMMANDS = SYMBOL_COMMANDS | _FUNCTIONS | _PLAIN_CLOSING.keys() | _OPERATORS | _CONSTRUCTS.keys()


def is_foreign_command(token: Token) -> bool:
    """Whether the token is a command that no expression holds, such as `\\int`."""
    return token.kind == "command" and token.text not in _KNOWN_COMMANDS
