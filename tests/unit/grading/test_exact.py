"""The fast path says nothing that the general way would not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladle.grading.grade import judge_exactly
from ladle.grading.judge import judge
from ladle.grading.verdict import AnswerType, Judgement, Pair, Verdict

spelled = st.one_of(
    st.integers(-(10**7), 10**7).map(str),
    st.integers(1000, 10**8).map("{:,}".format),
    st.integers(1000, 10**8).map(lambda value: f"{value:,}".replace(",", "{,}")),
    st.decimals(-1000, 1000, places=2).map(str),
    st.tuples(st.integers(-50, 50), st.integers(1, 50)).map(lambda parts: f"{parts[0]}/{parts[1]}"),
    st.tuples(st.integers(0, 50), st.integers(1, 50)).map(lambda parts: rf"\frac{{{parts[0]}}}{{{parts[1]}}}"),
)
dressed = st.tuples(spelled, st.sampled_from(["{}", "${}$", r"\boxed{{{}}}", " {} ", "{}."])).map(
    lambda parts: parts[1].format(parts[0])
)


@settings(deadline=None, max_examples=300)
@given(dressed, dressed)
def test_it_agrees_with_the_reader(gold: str, answer: str) -> None:
    fast = judge_exactly(Pair(gold, answer), None)
    if fast is not None:
        # A blank keeps the text from being the same; the tolerance keeps the general way off the fast path.
        general = judge(Pair(gold, answer + " ", tolerance=0.0), rounding_digits=30)
        assert isinstance(general, Judgement)
        assert general.verdict == fast.verdict


def test_it_decides_most_of_what_models_write() -> None:
    for gold, answer in (
        ("18", "18"),
        ("73", "073"),
        ("27.0", "27"),
        ("1,450,000", "1450000"),
        ("1/2", r"\frac{2}{4}"),
    ):
        judgement = judge_exactly(Pair(gold, answer), None)
        assert judgement is not None
        assert judgement.verdict is Verdict.CORRECT
    judgement = judge_exactly(Pair("18", "$19$"), None)
    assert judgement is not None
    assert judgement.verdict is Verdict.WRONG


@pytest.mark.parametrize(
    "pair",
    [
        Pair("1.25", "1.2500001"),  # a question of rounding
        Pair("4.2", "4.3", tolerance=0.1),
        Pair("100,200", "100200", multiple=True),
        Pair("3", "x"),
        Pair("", ""),
        Pair("1/0", "1/0 "),
        Pair("9" * 100, "9" * 99 + "8"),
    ],
)
def test_it_leaves_the_rest(pair: Pair) -> None:
    assert judge_exactly(pair, None) is None


def test_words_are_not_numbers() -> None:
    assert judge_exactly(Pair("12", "12.0"), AnswerType.TEXT) is None
