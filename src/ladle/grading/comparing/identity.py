"""Whether two expressions are equal as functions of their symbols, decided at points chosen by the symbols' names.

Two different formulas of the size of an answer agree to 30 digits at several such points with a probability that is
nothing beside that of a misprint in the gold answers (for polynomials: Schwartz 1980, doi:10.1145/322217.322225). No
algebra is done, so no answer is too hard to compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from ladle.grading.comparing.evaluate import BARE_LOGARITHM, Point, evaluate, symbols_of, walk
from ladle.grading.comparing.functions import pseudo_random, pseudo_random_integer
from ladle.grading.comparing.values import CONTEXT, Undefined, Value, is_close, multiply
from ladle.grading.reading.tree import Call, Expression, Number, Power, TooLarge

_SCALES = (Fraction(1, 4), Fraction(1), Fraction(3))  # below 1 and above, for roots of 1 - x^2 and of x^2 - 1
_SIGNS = ((1, 1), (-1, 1), (-1, -1))
_INTEGER_POINTS = 20  # enough for the residues that floors of small quotients tell apart, and for both k < n and n < k
_FEWEST_INTEGER_POINTS = 3  # where fewer have a value, d!/(d-k)! has been seen at d = k only
_INTEGER_FUNCTIONS = frozenset({"floor", "ceil", "factorial", "gamma", "binomial", "permutation", "gcd", "lcm"})
_ROOTS_AND_LOGARITHMS = frozenset({"root", "ln", "log"})
_BARE_BASES = (CONTEXT.mpf(1), CONTEXT.ln(10))  # `\log` without a base is natural or decimal: either reading may match


def are_identical(gold: Expression, answer: Expression) -> bool | None:
    """Whether the expressions are equal; None where too few points have values of both.

    Raises:
        TooLarge: the values are too large to compare.
    """
    verdicts = [_agree(gold, answer, base) for base in _bases(gold, answer)]
    return True if True in verdicts else verdicts[0]


def _agree(gold: Expression, answer: Expression, bare_base: Value) -> bool | None:
    compared = 0
    for gold_value, answer_value in sample([gold, answer], bare_base):
        if not is_close(gold_value, answer_value):
            return False
        compared += 1
    fewest = _FEWEST_INTEGER_POINTS if _are_about_integers([gold, answer]) else 1
    return True if compared >= fewest else None


def are_proportional(gold: Expression, answer: Expression, positive: bool) -> bool | None:
    """Whether one expression is a constant multiple of the other, as the two sides of equal equations are.

    Args:
        gold: an expression, zero where its equation holds.
        answer: another.
        positive: whether the multiple must be positive, as for inequalities.
    """
    pairs = list(sample([gold, answer], _BARE_BASES[0]))
    if not pairs:
        return None
    first_gold, first_answer = pairs[0]
    if is_close(first_gold, Fraction(0)) or is_close(first_answer, Fraction(0)):
        return False
    if positive and not (first_gold / first_answer).real > 0:
        return False
    return all(is_close(multiply(one, first_answer), multiply(other, first_gold)) for one, other in pairs)


def sample(expressions: Sequence[Expression], bare_base: Value) -> Iterator[tuple[Value, ...]]:
    """Yield the values of all expressions at each point where all of them have one.

    Raises:
        TooLarge: at no point do they, and at one they are too large.
    """
    found, too_large = False, None
    for point in _choose_points(expressions):
        try:
            values = tuple(evaluate(expression, {**point, BARE_LOGARITHM: bare_base}) for expression in expressions)
        except Undefined:
            continue
        except TooLarge as error:
            too_large = error
            continue
        found = True
        yield values
    if too_large is not None and not found:
        raise too_large


def _bases(gold: Expression, answer: Expression) -> Sequence[Value]:
    bare = any(_is_bare_logarithm(node) for side in (gold, answer) for node in walk(side))
    return _BARE_BASES if bare else _BARE_BASES[:1]


def _is_bare_logarithm(node: Expression) -> bool:
    return isinstance(node, Call) and node.function == "log" and len(node.arguments) == 1


def _choose_points(expressions: Sequence[Expression]) -> Iterator[Point]:
    names = sorted(set[str]().union(*(symbols_of(expression) for expression in expressions)))
    if not names:
        yield {}
    elif _are_about_integers(expressions):
        for step in range(_INTEGER_POINTS):
            yield {name: Fraction(1 + pseudo_random_integer(f"{step}{name}") % 20) for name in names}
    else:
        # A gold answer with the root or the logarithm of a symbol takes it to be positive, as physics does.
        signs = _SIGNS[:1] * 3 if any(_is_root_of_symbol(node) for node in walk(expressions[0])) else _SIGNS
        for scale, pair in zip(_SCALES, signs, strict=True):
            yield {name: scale * pair[i % 2] * pseudo_random(f"{scale}{name}") for i, name in enumerate(names)}


def _are_about_integers(expressions: Sequence[Expression]) -> bool:
    has_symbols = any(symbols_of(expression) for expression in expressions)
    return has_symbols and any(_is_about_integers(node) for expression in expressions for node in walk(expression))


def _is_about_integers(node: Expression) -> bool:
    if isinstance(node, Call):
        return node.function in _INTEGER_FUNCTIONS
    if isinstance(node, Power) and isinstance(node.base, Number):
        return node.base.value < 0 and bool(symbols_of(node.exponent))
    return False


def _is_root_of_symbol(node: Expression) -> bool:
    if isinstance(node, Call):
        return node.function in _ROOTS_AND_LOGARITHMS and bool(symbols_of(node))
    if isinstance(node, Power) and symbols_of(node.base):
        return not (isinstance(node.exponent, Number) and node.exponent.value.denominator == 1)
    return False
