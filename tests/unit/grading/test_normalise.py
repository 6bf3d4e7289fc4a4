"""What is typeset the same gets one spelling, and nothing changes its value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.grading.normalise import normalise, read_number_words, spell_number_words


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("10{,}000", "10000"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        (r"10\,080", "10080"),
        ("1 000 000", "1000000"),
        ("1,000", "1,000"),  # a list or a number: the gold says
        (r"\$18.90", r"\dollar 18.90"),
        ("$18.90", r"\dollar 18.90"),
        ("$18$", "18"),
        ("$69$,$84$", "69, 84"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"( 3, \frac{\pi}{2} )"),
        (r"\dfrac{1}{2}", r"\frac {1}{2}"),
        ("5²", "5^{2}"),  # never 52
        ("√117", r"\sqrt{117}"),
        ("−½", r"-\frac{1}{2}"),
        ("8 percent", "8 %"),
        (r"\text{33}", "33"),
        (r"\text{12 cm}", r"12 \text{cm}"),
        (r"y^{\prime\prime}", "y''"),
        ("np.arcsin(10/13)", r"\arcsin (10/13)"),
        ("45 min", "45 min"),  # minutes, not a minimum
        ("min(3,4)", r"\min (3,4)"),
        ("2 and 3", r"2 \text{and} 3"),
        (r"\text{bread and butter}", r"\text{bread and butter}"),
        ("**5**.", "5"),
        (".5", ".5"),
        ("= 5", "5"),
    ],
)
def test_one_spelling(written: str, normal: str) -> None:
    assert normalise(written) == normal


@given(st.text(max_size=60))
def test_any_text_is_normalised(text: str) -> None:
    assert normalise(text) == normalise(text).strip()


@given(st.integers(-(10**30), 10**30))
def test_plain_integers_stay(value: int) -> None:
    assert normalise(str(value)) == str(value)


# Numbers in words.


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


def test_ordinals_are_parts_after_a_number_below_twenty() -> None:
    words = ("twenty-first", "two thirds", "nine seventh", "four and a half", "the sixth")
    assert [spell_number_words(text) for text in words] == ["21", "2/3", "9/7", "4 1/2", "6"]


def test_multiples() -> None:
    assert normalise(r"2.5 \text{ million dollars}") == r"2.5 \cdot 10^{6} \text{ dollars}"
    assert normalise("3 millionaires") == "3 millionaires"
