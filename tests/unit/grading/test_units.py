from __future__ import annotations

import pytest

from ladle.grading.nodes import Unreadable, tokenize
from ladle.grading.normalise import normalise
from ladle.grading.units import Unit, is_same_unit, is_unit_run, read_unit


def parse(text: str, accept_nouns: bool = False) -> Unit:
    return read_unit(tokenize(normalise(text)), accept_nouns)


@pytest.mark.parametrize(
    "spellings",
    [
        (r"\text{cm}^2", r"\mathrm{cm}^{2}", "square cm", r"\text{ square centimeters}", r"\text{sq. cm}"),
        (
            r"\text{km/h}",
            r"\text{km} / \text{h}",
            r"\text{kilometers per hour}",
            r"\frac{\text{km}}{\text{hr}}",
            "kmph",
        ),
        (r"\text{m/s}^2", r"\mathrm{m}\,\mathrm{s}^{-2}", r"\text{meters per second squared}"),
        (r"^\circ", r"^{\circ}", r"\text{ degrees}", r"\text{deg}"),
        (r"^\circ C", r"^{\circ}\text{C}", r"\text{ degrees Celsius}"),
        (r"\text{inches}", r"\text{in.}", r"\text{inch}"),
        ("%", r"\%", r"\text{percent}"),
    ],
)
def test_spellings_of_one_unit(spellings: tuple[str, ...]) -> None:
    assert len({tuple(sorted(parse(spelling).items())) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\text{cm}^2", r"\text{cm}^3"),
        (r"\text{cm}", r"\text{m}"),
        (r"\text{m/s}", r"\text{s/m}"),
        (r"\text{cents}", r"\text{dollars}"),
        (r"^\circ C", r"^\circ F"),
    ],
)
def test_units_that_differ(one: str, other: str) -> None:
    assert not is_same_unit(parse(one), parse(other))


@pytest.mark.parametrize("word", ["dozen", "thousand", "million", "halves", "minus"])
def test_words_that_change_the_number_are_no_units(word: str) -> None:
    with pytest.raises(Unreadable):
        parse(word, accept_nouns=True)


def test_nouns_are_units_only_where_the_caller_says_so() -> None:
    assert parse(r"\text{eggs}", accept_nouns=True) == {"egg": 1}
    with pytest.raises(Unreadable):
        parse(r"\text{eggs}")
    assert is_same_unit({"egg": 1}, {"brown": 1, "egg": 1})
    assert not is_same_unit({"meter": 1}, {"meter": 1, "egg": 1})


def test_a_lone_letter_in_plain_text_is_a_variable() -> None:
    assert is_unit_run("cm")
    assert not is_unit_run("m")
    assert not is_unit_run("ab")
