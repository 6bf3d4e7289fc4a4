"""The rules that are neither reading nor arithmetic: rounding, per cent, names, types, lists."""

from __future__ import annotations

import pytest

from ladle.errors import UserError
from ladle.grading.judge import Algebra, judge
from ladle.grading.verdict import Judgement, Pair, Verdict

CORRECT, WRONG, UNPARSED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED


def verdict_on(pair: Pair, rounding_digits: int = 5) -> Verdict:
    judgement = judge(pair, rounding_digits)
    assert isinstance(judgement, Judgement)
    return judgement.verdict


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\pi", "3.1416", CORRECT),  # rounded
        (r"\pi", "3.1415", CORRECT),  # cut off
        (r"\pi", "3.1417", WRONG),
        (r"\pi", "3.142", WRONG),  # too few digits
        (r"\frac{1}{3}", "0.33333", CORRECT),
        (r"\frac{1}{3}", "0.3333", WRONG),
        (r"\frac{2}{3}", "0.66667", CORRECT),
        ("3", "3.00001", WRONG),
        ("3", "2.99999", WRONG),
        ("3.14159", r"\pi", CORRECT),
        ("3.14", r"\pi", WRONG),
        ("0.35625", "0.3563", WRONG),  # a decimal gold asks for all its digits
        ("1.2346", "1.23456", CORRECT),  # more digits that round to the gold's
        ("1.2345", "1.23456", WRONG),
        (r"\sqrt{2}", "1", WRONG),
    ],
)
def test_a_decimal_stands_for_what_rounds_to_it(gold: str, answer: str, verdict: Verdict) -> None:
    assert verdict_on(Pair(gold, answer)) is verdict


def test_the_digits_are_a_setting() -> None:
    assert verdict_on(Pair(r"\sqrt{2}", "1.41"), rounding_digits=3) is CORRECT
    assert verdict_on(Pair(r"\sqrt{2}", "1.41"), rounding_digits=4) is WRONG


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("62.5%", "62.5", CORRECT),
        ("62.5%", "0.625", CORRECT),
        ("62.5%", "5/8", CORRECT),
        ("0.625", "62.5%", CORRECT),
        ("62.5", "62.5%", CORRECT),
        ("62.5%", "6250%", WRONG),
        ("0.625", "62.5", WRONG),
        ("62.5%", "0.625%", WRONG),
    ],
)
def test_per_cent(gold: str, answer: str, verdict: Verdict) -> None:
    assert verdict_on(Pair(gold, answer)) is verdict


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("5", "x=5", CORRECT),
        ("5", r"\text{Area} = 5", CORRECT),
        ("5", "2+3=5", CORRECT),
        ("5", "1=2=5", WRONG),  # it contradicts itself
        ("5", "5 = x = 6", WRONG),
        ("5", "x>5", WRONG),
        (r"\sqrt{2}", r"x = \sqrt{2} \approx 1.4", CORRECT),
        (r"\sqrt{2}", r"\sqrt{3} \approx 1.41421", WRONG),
        ("x=5", "5=x", CORRECT),
        ("x=5", "y=5", WRONG),
        ("f(n)=2n", "f(m)=2m", CORRECT),
        ("f(n)=2n", "g(n)=2n", WRONG),
        ("f(n)=2n", "f(m)=2n", WRONG),
        ("c e^{-2x}", "C e^{-2x}", CORRECT),  # a constant of integration
        ("k e^{-2x}", "K e^{-2x}", WRONG),
        ("y' = ky", r"\frac{dy}{dx} = ky", CORRECT),
        (r"\frac{dy}{dx} = ky", r"\frac{dy}{dt} = ky", WRONG),
    ],
)
def test_names(gold: str, answer: str, verdict: Verdict) -> None:
    assert verdict_on(Pair(gold, answer)) is verdict


def test_types_settle_what_the_text_leaves_open() -> None:
    assert verdict_on(Pair("58,500", "58500")) is CORRECT
    assert verdict_on(Pair("58,500", "58500", type="set")) is WRONG
    assert verdict_on(Pair("58,500", "500, 58", type="list")) is CORRECT
    assert verdict_on(Pair("B", "b", type="choice")) is CORRECT
    assert verdict_on(Pair("B", "b", type="expression")) is WRONG
    with pytest.raises(UserError, match="'tupel'"):
        judge(Pair("(1,2)", "(1,2)", type="tupel"), 5)


def test_units_asked_for() -> None:
    assert verdict_on(Pair("600/7", r"\frac{600}{7}", unit="km/h")) is CORRECT
    assert verdict_on(Pair("600/7", r"\frac{600}{7} km/h", unit="km/h")) is CORRECT
    assert verdict_on(Pair("600/7", r"\frac{600}{7} \text{ m/s}", unit="km/h")) is WRONG
    assert verdict_on(Pair(r"10 \text{ m/s}", "10 m/s")) is CORRECT
    assert verdict_on(Pair("10", "10m")) is WRONG  # ten times m


def test_tolerance_is_absolute_and_includes_its_end() -> None:
    assert verdict_on(Pair("4.2", "4.3", tolerance=0.1)) is CORRECT
    assert verdict_on(Pair("4.2", "4.31", tolerance=0.1)) is WRONG
    assert verdict_on(Pair("4.2", "4.3")) is WRONG


def test_lists_have_no_order_but_tuples_do() -> None:
    assert verdict_on(Pair("1,2,3", "3,1,2")) is CORRECT
    assert verdict_on(Pair("16,3,1,1", "1,3,16", multiple=True)) is WRONG
    assert verdict_on(Pair("(1,2)", "(2,1)")) is WRONG
    assert verdict_on(Pair("(1,2),(3,4)", "(3,4),(1,2)", multiple=True)) is CORRECT
    assert verdict_on(Pair(r"\{1,2\}", "(1,2)")) is WRONG


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("4:30 p.m.", "4:30", CORRECT),
        ("4:30", r"4:30 \text{ PM}", CORRECT),
        ("4:30 p.m.", "4:30 a.m.", WRONG),
        ("3:45", "1:15", WRONG),
        ("3:45", r"\frac{1}{15}", CORRECT),  # a ratio, if the answer takes it for one
    ],
)
def test_times(gold: str, answer: str, verdict: Verdict) -> None:
    assert verdict_on(Pair(gold, answer)) is verdict


def test_a_gold_in_plain_words_has_its_unit_read() -> None:
    for gold in ("5 apples", r"5 \text{ apples}", r"\text{5 apples}"):
        assert verdict_on(Pair(gold, "5")) is CORRECT
        assert verdict_on(Pair(gold, "6 apples")) is WRONG
    assert verdict_on(Pair(r"\$32,\!348", r"\text{\$}32,348")) is CORRECT


@pytest.mark.parametrize("answer", ["5 squared", "5 point 3", "5 bn"])
def test_words_that_change_the_number_are_not_its_unit(answer: str) -> None:
    assert verdict_on(Pair("5", answer)) is UNPARSED


def test_a_tolerance_in_per_cent_is_on_the_golds_scale() -> None:
    assert verdict_on(Pair("4.2", "4.25%", unit="%", tolerance=0.1)) is CORRECT
    assert verdict_on(Pair("4.2", "0.0425", unit="%", tolerance=0.1)) is CORRECT
    assert verdict_on(Pair("4.2", "0.05", unit="%", tolerance=0.1)) is WRONG


@pytest.mark.parametrize(
    "answer", ["5 billion", "5 dozen", "5 and a half", "five thousand", "6", "five hundred", "fifty"]
)
def test_a_multiple_of_the_number_is_another_one(answer: str) -> None:
    assert verdict_on(Pair("5", answer)) is WRONG


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "five"),
        ("25", r"\text{twenty-five}"),
        ("2", "two solutions"),
        ("2500000", r"2.5 \text{ million}"),
        ("1000000", "one million"),
        ("20", r"{}_6C_3"),
        (r"\frac{n(n-1)}{2}", "C(n,2)"),
        (r"\frac{n(n-1)}{2}", "C_n^2"),
        ("120", "P(6,3)"),
        ("(1, 2)", "A(1, 2)"),
        (r"\frac{2}{3}", "0.666..."),
        (r"\frac{\sqrt{3}}{3}", r"\tan 30^\circ"),
        ("6 - 5i", r"6 - 5\mathrm{i}"),
        ("385", r"1^2+2^2+\cdots+10^2 = 385"),
        ("(0, \\infty)", r"\mathbb{R}^+"),
        (r"t(0,4]", r"t \in (0,4]"),
        (r"\emptyset", r"\text{no solution}"),
        (r"\text{infinitely many}", r"\infty"),
        (r"\begin{pmatrix} 1/5 \\ -2 \end{pmatrix}", r"\frac{1}{5}\begin{pmatrix} 1 \\ -10 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}^T"),
    ],
)
def test_other_spellings_of_the_same(gold: str, answer: str) -> None:
    assert verdict_on(Pair(gold, answer)) is CORRECT


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("12 cm", "0.12 m", CORRECT),
        ("12 cm", "12 m", WRONG),
        ("6 feet", "72 inches", CORRECT),
        (r"8 \text{ inches}", "8''", CORRECT),
        (r"8 \text{ inches}", "8'", WRONG),
        (r"36 \text{ km/h}", r"10 \text{ m/s}", CORRECT),
        (r"36 \text{ km/h}", r"36 \text{ m/s}", WRONG),
        (r"10 \text{ J}", r"10 \text{ N m}", CORRECT),
        (r"15 \text{ cm}^2", r"0.15 \text{ m}^2", WRONG),
        ("9.8 m/s^2", r"9.8\,\mathrm{m\,s^{-2}}", CORRECT),
        ("3 kg", "3 seconds", WRONG),
    ],
)
def test_units_of_the_same_kind_are_converted(gold: str, answer: str, verdict: Verdict) -> None:
    assert verdict_on(Pair(gold, answer)) is verdict


_CONDITIONED = r"$f(x)=a x+b$, where $b$ is an arbitrary integer, and $a$ is a positive integer with $\mho(a)=0$"


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\frac{\pi}{4} + n\pi", r"\frac{\pi}{4} + k\pi", CORRECT),
        (r"x = \frac{\pi}{4} + n\pi", r"x = \frac{5\pi}{4} + k\pi, k \in \mathbb{Z}", CORRECT),
        (r"x = \frac{\pi}{4} + n\pi", r"x = \frac{\pi}{4} + 2k\pi, k \in \mathbb{Z}", WRONG),
        (r"\frac{\pi}{4} + \frac{n\pi}{2}, n \in \mathbb{Z}", r"\frac{\pi}{4}+k\pi, \frac{3\pi}{4}+k\pi", CORRECT),
        (r"(n-2)\pi", r"n\pi", WRONG),
        ("2n+1", "2n-1", WRONG),
        ("2n+1", "2k+1", WRONG),
        ("f(x) = cx", r"f(x) = kx \text{ for some constant } k", CORRECT),
        (r"x = 2n, n \in \mathbb{Z}", r"x = 2n, n \in \mathbb{N}", WRONG),
        (
            _CONDITIONED,
            r"$f(x)=ax+b$, where $a$ is any positive integer with $\mho(a)=0$ and $b$ is an integer",
            CORRECT,
        ),
        (_CONDITIONED, "f(x)=ax", WRONG),
        (_CONDITIONED, "f(x)=ax+b", UNPARSED),
        (_CONDITIONED, "f(x)=a x+b", UNPARSED),
        (r"\sum_{k=1}^{n} k \text{ for } n > 3", r"\sum_{k=1}^{n} k", UNPARSED),
        (_CONDITIONED, _CONDITIONED.replace("=0", "=1"), UNPARSED),
    ],
)
def test_bound_letters_and_conditions(gold: str, answer: str, verdict: Verdict) -> None:
    assert verdict_on(Pair(gold, answer)) is verdict


def test_words_for_a_number_are_wrong_and_noise_is_unparsed() -> None:
    assert verdict_on(Pair("5", "no solution")) is WRONG
    assert verdict_on(Pair("5", "")) is UNPARSED
    assert verdict_on(Pair("5", "((")) is UNPARSED
    assert verdict_on(Pair("5", "\x00")) is UNPARSED


def test_what_the_reader_does_not_know_is_left_for_math_verify() -> None:
    assert isinstance(judge(Pair("1/2", r"\int_0^1 x\,dx"), 5), Algebra)


def test_a_gold_that_nothing_reads_still_equals_itself() -> None:
    gold = r"$f(x)=a x+b$, where $b$ is an arbitrary integer with $\mho(a)=0$"
    assert verdict_on(Pair(gold, gold.replace("$", ""))) is CORRECT
    assert verdict_on(Pair(gold, "f(x)=ax+b")) is UNPARSED
