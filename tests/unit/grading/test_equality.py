"""Equality of formulas, decided at points."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladle.grading.expressions import read_expression
from ladle.grading.nodes import Expression, tokenize
from ladle.grading.normalise import normalise
from ladle.grading.values import are_identical, are_proportional


def parse(text: str) -> Expression:
    return read_expression(tokenize(normalise(text)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(x+1)^2", "x^2+2x+1"),
        (r"\sin 2x", r"2\sin x\cos x"),
        (r"\frac{1}{x}+\frac{1}{y}", r"\frac{x+y}{xy}"),
        (r"\sqrt{4\pi G \rho r^2}", r"2r\sqrt{\pi G \rho}"),  # a root in the gold: its symbols are positive
        (r"\lfloor \frac{n+1}{2} \rfloor", r"\lceil n/2 \rceil"),  # true of integers only
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
        (r"(-1)^{2n}", "1"),
        (r"\frac{\log 8}{\log 2}", "3"),
        (r"\log x", r"\log_{10} x"),
        (r"\log x", r"\ln x"),
        (r"e^{i x}", r"\cos x + i \sin x"),
        (r"\frac{d!}{2k(d-k)!}", r"\frac{1}{2k} \cdot \frac{d!}{(d-k)!}"),
        (r"|x|^2", "x^2"),
    ],
)
def test_identical(one: str, other: str) -> None:
    assert are_identical(parse(one), parse(other)) is True


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(x+1)^2", "x^2+2x+2"),
        ("x", "X"),
        ("x", "y"),
        ("|x|", "x"),
        ("x", r"\sqrt{x^2}"),
        (r"\lfloor m/2 \rfloor", r"\lceil m/2 \rceil"),
        (r"\lfloor n/3 \rfloor", r"\lfloor (n+1)/3 \rfloor"),
        (r"\frac{d!}{2k(d-k)!}", r"\frac{k!}{2k(d-k)!}"),
        (r"\binom{n}{k}", r"\binom{n}{k+1}"),
        ("(-1)^n", "1"),
        (r"\log_2 x", r"\log_3 x"),
        (r"\sin x", "x"),
        ("f(x)", "f(y)"),
        ("I(0)", "I(1)"),
    ],
)
def test_different(one: str, other: str) -> None:
    assert are_identical(parse(one), parse(other)) is False


def test_nowhere_defined_is_undecided() -> None:
    assert are_identical(parse(r"\frac{1}{0}"), parse("5")) is None


@pytest.mark.parametrize(
    ("one", "other", "positive", "proportional"),
    [
        ("2x-3y", "4x-6y", False, True),
        ("2x-3y", "3y-2x", False, True),
        ("2x-3y", "3y-2x", True, False),
        ("2x-3y", "2x-4y", False, False),
        ("x^2-1", "x-1", False, False),
        ("S R M C - L R M C", "O R M C - L R M C", False, False),
    ],
)
def test_proportional(one: str, other: str, positive: bool, proportional: bool) -> None:
    assert are_proportional(parse(one), parse(other), positive) is proportional


@settings(deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=5), st.integers(-9, 9), st.sampled_from("xnpq"))
def test_polynomials_are_equal_only_if_their_coefficients_are(
    coefficients: list[int], change: int, letter: str
) -> None:
    def write(values: list[int]) -> str:
        return "+".join(f"({value}){letter}^{{{power}}}" for power, value in enumerate(values))

    changed = [*coefficients[:-1], coefficients[-1] + change]
    horner = "0"
    for value in reversed(changed):
        horner = f"({horner}){letter}+({value})"
    assert are_identical(parse(write(coefficients)), parse(horner)) is (change == 0)
