from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.grading.normalise import read_number_words, spell_multiples, spell_number_words

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def in_words(number: int) -> str:
    """The other direction, written down apart: 0 to below a billion."""
    for power, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= power:
            rest = number % power
            return f"{in_words(number // power)} {name}" + (f" {in_words(rest)}" if rest else "")
    if number < 20:
        return SMALL.split()[number]
    tens = TENS.split()[number // 10 - 2]
    return f"{tens}-{in_words(number % 10)}" if number % 10 else tens


@given(st.integers(0, 10**9 - 1))
def test_every_number_in_words_is_read(number: int) -> None:
    assert spell_number_words(in_words(number)) == str(number)


@pytest.mark.parametrize(
    "text", ["two three", "fifty fifty", "twenty eleven", "hundred", "seven or eight", "one-to-one", "four-digit", "to"]
)
def test_other_words_stay(text: str) -> None:
    assert spell_number_words(text) == text


def test_and_joins_nothing_by_itself() -> None:
    assert read_number_words(["one", "hundred", "and", "five"]) == 105
    assert read_number_words([]) is None


def test_a_noun_follows() -> None:
    assert spell_number_words("Two real solutions") == "2 real solutions"


def test_multiples() -> None:
    assert " ".join(spell_multiples(r"2.5 \text{ million dollars}").split()) == r"2.5 \cdot 10^{6} \text{ dollars}"
    assert spell_multiples("3 millionaires") == "3 millionaires"
