"""The last resort for what the reader refuses (integrals, sums, limits, cases): math-verify, on LaTeX and all of it.

math-verify's own `parse` searches a text for something to read: it falls back to a number inside a formula that it
cannot read, and drops primes, base subscripts and units. Here its LaTeX grammar must consume the whole answer, and
what it is known to drop is refused. Its numbers go through `sympy.Number(text)`, which ends in Python's `eval`; here
they are made from their digits.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

import sympy
from antlr4.error.ErrorListener import ErrorListener
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy  # the public function evaluates digits
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify import verify
from sympy.polys.monomials import MonomialOps

from ladle.grading.judge import Algebra
from ladle.grading.nodes import Unreadable, read_literal
from ladle.grading.verdict import Judgement, Verdict

# It warns once that its own timeouts are off; the worker's limits are on.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_DROPPED = re.compile(r"'|\d\s*_|\\(?:text|mbox|mathrm|operatorname|textbf)|\\pm|\\circ|%|\\dollar")
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SPELLING = NormalizationConfig(basic_latex=False, malformed_operators=True, boxed="none")  # \frac12 for its grammar
MAX_GENERATORS = 24  # polynomials in more symbols make sympy generate code for them, which is refused
_CONVERSION = ConversionConfig(lowercase_symbols=False)


def judge_algebra(left: Algebra) -> Judgement:
    """Return math-verify's verdict on what the reader could not decide.

    Raises:
        Exception: whatever its conversion to sympy meets; it has no error type of its own.
    """
    try:
        answer, gold = _parse(left.answer), _parse(left.gold)
        equal = verify(gold, answer, timeout_seconds=None)
    except Unreadable as error:
        return Judgement(Verdict.UNPARSED, f"{left.refusal}; {error}")
    if equal:
        return Judgement(Verdict.CORRECT, "equal values, by math-verify")
    return Judgement(Verdict.WRONG, "different values, by math-verify")


class _WholeText(_Latex2Sympy):
    """Its parser demands the end of the text; only its numbers are replaced."""

    class MathErrorListener(ErrorListener):
        """Makes a syntax error ours; upstream raises a bare Exception with a drawing of the place."""

        def __init__(self, src: str) -> None:
            super().__init__()

        def syntaxError(self, recognizer: Any, offendingSymbol: Any, line: int, column: int, msg: str, e: Any) -> None:
            """Refuse the text; antlr calls this at the first token that its grammar has no place for."""
            raise Unreadable(f"math-verify stops at character {column}")

    def parse_number(self, text: str) -> Any:
        number = read_literal(text.replace(",", ""))
        if number.places is None:
            return sympy.Rational(number.value.numerator, number.value.denominator)
        return sympy.Float(number.value.numerator, 30) / number.value.denominator


@lru_cache(maxsize=64)  # a gold is compared with many answers
def _parse(text: str) -> Any:
    if _DROPPED.search(text):
        raise Unreadable("math-verify would drop a part of it")
    if _GROUPED.fullmatch(text):
        raise Unreadable("a list of numbers that looks like one")
    return _WholeText(is_real=True, config=_CONVERSION).parse(normalize_latex(text, _SPELLING))


_EARLIEST = (
    (r"\int_0^1 x\,dx", r"\frac12"),
    (r"\sum_{k=1}^{n} k", r"\sum_{k=1}^{n} (k+1)"),
    (r"\lim_{x\to 0} \frac{\sin x}{x}", r"\sum_{k=1}^{3} k^2"),
    (r"(0,1)\setminus\{\frac12\}", r"(0,1)\setminus\{\frac13\}"),
    (r"\begin{vmatrix} a & b \\ c & d \end{vmatrix}", r"a d-b c"),
)


def warm_up() -> None:
    """Load what sympy imports late, and make what it makes of its own text, before the audit hook refuses both."""
    for gold, answer in _EARLIEST:
        judge_algebra(Algebra(gold, answer, ""))
    sympy.hyperexpand(sympy.hyper([1], [2], sympy.Symbol("z")))
    for number in range(1, MAX_GENERATORS + 1):
        operations = MonomialOps(number)
        for make in ("mul", "pow", "mulpow", "ldiv", "div", "lcm", "gcd"):
            getattr(operations, make)()
