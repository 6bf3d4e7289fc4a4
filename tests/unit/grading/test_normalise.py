from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.grading.normalise import normalise


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
