"""What the parser makes of formulas, seen by their values."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.grading.expressions import read_expression
from ladle.grading.nodes import Expression, Symbol, TooLarge, Unreadable, symbols_of, tokenize
from ladle.grading.normalise import normalise
from ladle.grading.values import Undefined, as_float, evaluate


def parse(text: str) -> Expression:
    return read_expression(tokenize(normalise(text)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7),
        ("2-3-4", -5),
        ("1/2/2", Fraction(1, 4)),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2^{3^2}", 512),
        ("2^-1", Fraction(1, 2)),
        ("2^10", 1024),
        (r"\frac12", Fraction(1, 2)),
        (r"\frac 59", Fraction(5, 9)),
        (r"\frac9{19}", Fraction(9, 19)),
        (r"\frac{270}7", Fraction(270, 7)),
        (r"3\frac{1}{2}", Fraction(7, 2)),
        (r"-1\frac45", Fraction(-9, 5)),
        ("3 1/2", Fraction(7, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("4.5e3", 4500),
        (r"4.5 \times 10^{3}", 4500),
        (r"\sqrt{16}", 4),
        (r"\sqrt[3]{-27}", -3),
        (r"8^{2/3}", 4),
        (r"\sqrt49", 18),  # LaTeX puts the 4 alone under the root
        ("5!", 120),
        (r"\binom{5}{2}", 10),
        (r"|3-5|", 2),
        (r"\lfloor 7/2 \rfloor", 3),
        (r"\left\lceil -7/2 \right\rceil", -3),
        (r"\gcd(12, 18)", 6),
        (r"\max(2, 3, 1)", 3),
        (r"2(3+4)5", 70),
        (r"\frac{1}{2}\cdot -4", -2),
    ],
)
def test_exact_values(text: str, value: Fraction | int) -> None:
    found = evaluate(parse(text), {})
    assert isinstance(found, Fraction)
    assert found == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\sin 2 \cdot 3", math.sin(2) * 3),
        (r"\sin^2 2 + \cos^{2} 2", 1.0),
        (r"\sin(1)/2", math.sin(1) / 2),
        (r"\sin^{-1} 0.5", math.asin(0.5)),
        (r"\tan 45^\circ", 1.0),
        (r"2\pi", 2 * math.pi),
        (r"e^{2}", math.e**2),
        (r"\ln 2 + 1", math.log(2) + 1),
        (r"\log_2 10", math.log2(10)),
        (r"\log _{10} 2", math.log10(2)),
        (r"3\sqrt{13}", 3 * math.sqrt(13)),
        (r"2^{0.5}", math.sqrt(2)),
        (r"\exp(1.5)", math.exp(1.5)),
        (r"\operatorname{arctan}(2)", math.atan(2)),
    ],
)
def test_float_values(text: str, value: float) -> None:
    assert float(as_float(evaluate(parse(text), {}))) == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x_{1}+x_1", {"x_1"}),
        (r"\lambda_{\text{red}}", {"\\lambda_red"}),
        ("2RC+R", {"R", "C"}),
        (r"\dot{x}_0 + x'_{0}", {"D1[x_0]"}),
        (r"\frac{d^2 x}{dt^2}", {"D2[x,t]"}),
        (r"\frac{d}{dt} x", {"D1[x,t]"}),
        (r"\hat{p}", {"hat p"}),
        ("e^{i\\pi}", set()),
    ],
)
def test_names(text: str, names: set[str]) -> None:
    assert symbols_of(parse(text)) == names


def test_a_letter_on_a_number_is_a_function_and_not_a_product() -> None:
    assert evaluate(parse("I(0)"), {}) != evaluate(parse("J(0)"), {})
    assert evaluate(parse("n(n+1)"), {"n": Fraction(3)}) == 12


@pytest.mark.parametrize(
    "text", ["", "1+", "(1", "1)", "2 3", r"\frac{1}", "x_", "1 2 3", "(1]", "a..b", r"\int x", "5 %"]
)
def test_what_is_not_a_value_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


def test_sizes_are_refused_before_they_are_computed() -> None:
    for text in ("9^{9^{9^9}}", "(10^9)!", r"\exp(\exp(\exp(10)))", r"\binom{10^{30}}{10^{20}}"):
        with pytest.raises(TooLarge):
            evaluate(parse(text), {})
    with pytest.raises(TooLarge):
        parse("1e999999999")
    with pytest.raises(TooLarge):
        parse("(" * 60 + "1" + ")" * 60)


@pytest.mark.parametrize("text", [r"\frac10", "0^{-1}", r"\ln 0", r"\infty", "(-1)!"])
def test_no_value(text: str) -> None:
    with pytest.raises(Undefined):
        evaluate(parse(text), {})


rational = st.fractions(min_value=-50, max_value=50, max_denominator=20)


def render(value: Fraction) -> str:
    return f"({value.numerator}/{value.denominator})"


@given(rational, rational, rational, st.integers(0, 4))
def test_rational_arithmetic_is_exact(one: Fraction, other: Fraction, third: Fraction, exponent: int) -> None:
    text = f"{render(one)}{render(other)}-{render(third)}^{{{exponent}}}+{render(one)}"
    assert evaluate(parse(text), {}) == one * other - third**exponent + one


@given(st.sampled_from("abcxyz"), rational)
def test_symbols_take_their_values(letter: str, value: Fraction) -> None:
    assert parse(letter) == Symbol(letter)
    assert evaluate(parse(f"2{letter}+1"), {letter: value}) == 2 * value + 1
