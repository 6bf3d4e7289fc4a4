from __future__ import annotations

from fractions import Fraction

import pytest

from ladle.grading.nodes import (
    BaseNumeral,
    ClockTime,
    Constant,
    Foreign,
    Interval,
    Listing,
    Matrix,
    Number,
    Ordered,
    Quantity,
    Relation,
    Symbol,
    Text,
    TooLarge,
    Tree,
    Union,
    Unordered,
    Unreadable,
)
from ladle.grading.normalise import normalise
from ladle.grading.structure import Reading, read

ONE, TWO, THREE = (Number(Fraction(value)) for value in (1, 2, 3))
PLAIN = Reading(is_grouped=True, accepts_nouns=False, accepts_unit_letters=False)
NOUNS = Reading(is_grouped=True, accepts_nouns=True, accepts_unit_letters=False)


def parse(text: str, reading: Reading = PLAIN) -> Tree:
    return read(normalise(text), reading)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("1, 2", Listing([ONE, TWO], ",")),
        ("1, 2, and 3", Listing([ONE, TWO, THREE], "and")),
        ("1 or 2", Listing([ONE, TWO], "or")),
        ("(1,2)", Ordered([ONE, TWO])),
        (r"\langle 1, 2 \rangle", Ordered([ONE, TWO])),
        (r"\{1, 2\}", Unordered([ONE, TWO])),
        ("{1, 2}", Unordered([ONE, TWO])),
        (r"\{1\}", Unordered([ONE])),
        (r"\emptyset", Unordered([])),
        ("[1,2]", Interval(ONE, TWO, True, True)),
        ("(1,2]", Interval(ONE, TWO, False, True)),
        (r"[1,\infty)", Interval(ONE, Constant("infinity"), True, False)),
        ("((1,2),(2,1))", Ordered([Ordered([ONE, TWO]), Ordered([TWO, ONE])])),
        (r"[1,2] \cup \{3\}", Union([Interval(ONE, TWO, True, True), Unordered([THREE])])),
        ("x = 1", Relation([Symbol("x"), ONE], ["="])),
        (r"1 < x \le 2", Relation([ONE, Symbol("x"), TWO], ["<", "<="])),
        (r"x \in \{1\}", Relation([Symbol("x"), Unordered([ONE])], ["in"])),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 1 \end{pmatrix}", Matrix([[ONE, TWO], [THREE, ONE]])),
        (r"\left[\begin{array}{cc} 1 & 2 \end{array}\right]", Matrix([[ONE, TWO]])),
        ("2516_8", BaseNumeral("2516", 8)),
        (r"101_{\text{two}}", BaseNumeral("101", 2)),
        ("4:30 p.m.", ClockTime(4, 30, "pm")),
        (r"\text{Evelyn}", Text("evelyn")),
        ("ABC", Text("abc")),
        (r"3 \text{ cm}^2", Quantity(THREE, {"centimeter": 2})),
        (r"\$3", Quantity(THREE, {"dollar": 1})),
        ("3^\\circ", Quantity(THREE, {"degree": 1})),
        ("3%", Quantity(THREE, {"%": 1})),
        ("3 kg", Quantity(THREE, {"kilogram": 1})),
        (r"3 \frac{\text{m}}{\text{s}^2}", Quantity(THREE, {"meter": 1, "second": -2})),
    ],
)
def test_structures(text: str, tree: Tree) -> None:
    assert parse(text) == tree


def test_both_signs_are_two_items_at_the_level_where_they_stand() -> None:
    assert isinstance(parse(r"1 \pm \sqrt{2}"), Listing)
    found = parse(r"\{1 \pm 2, 3\}")
    assert isinstance(found, Unordered)
    assert len(found.items) == 3


def test_the_gold_decides_what_a_comma_and_a_noun_are() -> None:
    assert parse("1,002") == Number(Fraction(1002))
    assert isinstance(parse("1,002", Reading(False, False, False)), Listing)
    assert parse("3 eggs", NOUNS) == Quantity(THREE, {"egg": 1})
    with pytest.raises(Unreadable):
        parse("3 halves", NOUNS)


@pytest.mark.parametrize(
    "text", ["", ",", "(1,", r"\begin{pmatrix} 1 \end{bmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix}"]
)
def test_broken_structures_are_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


@pytest.mark.parametrize(
    "text", [r"\int_0^1 x\,dx", r"(0,1) \setminus \{0\}", r"\sum_{k=1}^n k", r"\begin{cases} 1 \end{cases}"]
)
def test_what_another_reader_may_know_is_told_apart(text: str) -> None:
    with pytest.raises(Foreign):
        parse(text)


def test_long_lists_are_refused() -> None:
    with pytest.raises(TooLarge):
        parse(", ".join(["1"] * 500))
