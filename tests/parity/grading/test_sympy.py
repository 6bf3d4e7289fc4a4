"""Against sympy and math-verify: what sympy proves equal is accepted in sympy's own spelling, what differs is not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import sympy
from math_verify import parse, verify

from ladle.grading.grade import Grader
from ladle.grading.verdict import Pair, Verdict

x, y, n, a = sympy.symbols("x y n a")
EXPRESSIONS = [
    (x + 1) ** 3 - x,
    (x - y) * (x + y) / (x + 2 * y),
    sympy.sqrt(12) + sympy.Rational(7, 3),
    sympy.sqrt(5) / (1 + sympy.sqrt(5)),
    sympy.sin(x) ** 2 - sympy.cos(x) ** 2,
    sympy.exp(x + y) - sympy.exp(x),
    sympy.log(x * a) + sympy.log(a),
    sympy.pi**2 / 6 - 1,
    sympy.binomial(n, 2) + n,
    1 / (x**2 - 1) + 1 / (x + 1),
    (a + 1) ** 2 / (a - 3) ** 2,
    2 ** (n + 1) - 2**n,
    sympy.tan(x) + 1 / sympy.tan(x),
    sympy.I * x + sympy.sqrt(2) * sympy.I,
    sympy.Rational(22, 7) * x**5 - x**3 / 9,
    sympy.floor(n / 3) + n,
    sympy.factorial(n) / n,
    sympy.Abs(x - 1) + x,
]
REWRITINGS: list[Callable[[sympy.Expr], sympy.Expr]] = [
    sympy.expand,
    sympy.factor,
    sympy.together,
    sympy.trigsimp,
    sympy.simplify,
    sympy.nsimplify,
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
def test_every_rewriting_is_accepted(expression: sympy.Expr, grader: Grader) -> None:
    gold = sympy.latex(expression)
    for rewrite in REWRITINGS:
        answer = sympy.latex(rewrite(expression))
        assert grader.grade(Pair(gold, answer)).verdict is Verdict.CORRECT, (rewrite.__name__, answer)


def test_different_expressions_are_not(grader: Grader) -> None:
    pairs = [Pair(sympy.latex(one), sympy.latex(other)) for one, other in combinations(EXPRESSIONS, 2)]
    assert {grade.verdict for grade in grader.grade_many(pairs)} == {Verdict.WRONG}


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
def test_a_changed_coefficient_is_seen(expression: sympy.Expr, grader: Grader) -> None:
    for changed in (expression + 1, expression * 2, expression + sympy.Rational(1, 1000) * x):
        grade = grader.grade(Pair(sympy.latex(expression), sympy.latex(changed)))
        assert grade.verdict is Verdict.WRONG, sympy.latex(changed)


HOLES = [
    # What math-verify 0.9 accepts or refuses, and what is so.
    (r"\frac{2}{3}", r"\frac13E_1+\frac23E_2", False),
    ("2516_8", "2516_9", False),
    (r"864 \mbox{ inches}^2", r"864 \text{ inches}^3", False),
    ("5", r"<think> it could be \boxed{5} </think> \boxed{6}", False),
    ("4:30 p.m.", "4:30 PM", True),
    ("x", "X", False),
    (r"3\frac12", "3.5", True),
]


@pytest.mark.parametrize(("gold", "answer", "equal"), HOLES)
def test_holes_of_math_verify_are_closed(gold: str, answer: str, equal: bool, grader: Grader) -> None:
    (grade,) = grader.grade_completions([Pair(gold, answer if "boxed" in answer else f"\\boxed{{{answer}}}")])
    assert (grade.verdict is Verdict.CORRECT) is equal


def test_agreement_with_math_verify_where_it_is_safe(grader: Grader) -> None:
    """On plain numbers, fractions and surds the two must not differ."""
    texts = [
        "7",
        "-7",
        "0.5",
        r"\frac{1}{2}",
        r"\frac{2}{4}",
        r"\sqrt{2}",
        r"\frac{2}{\sqrt{2}}",
        r"2\pi",
        r"\pi",
        "x+1",
        "1+x",
    ]
    for gold in texts:
        for answer in texts:
            theirs = verify(parse(f"${gold}$"), parse(f"${answer}$"))
            ours = grader.grade(Pair(gold, answer)).verdict is Verdict.CORRECT
            assert ours is theirs, (gold, answer)
