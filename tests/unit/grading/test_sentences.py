from __future__ import annotations

import pytest

from ladle.grading.judge import Algebra, judge
from ladle.grading.verdict import Pair, Verdict
from ladle.grading.words import drop_statement


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("The area is 116.", "116."),
        ("Answer: 18", "18"),
        ("Janet makes \\$18 every day.", "\\$18 every"),
        ("\\text{Kylar needs to pay } \\$64", "\\$64 "),
        ("160 minutes (2 hours and 40 minutes)", "160 minutes"),
    ],
)
def test_what_a_sentence_says_is_taken_out(sentence: str, said: str):
    assert drop_statement(sentence) == said


@pytest.mark.parametrize(
    "sentence",
    [
        "it does not make 18",
        "Janet makes more than 18 dollars",
        "Janet makes at least 18",
        "Janet sells half of 18",
        "Janet makes 18 or 19 dollars",
        "she buys 18 dozen",
        "Janet makes 18 hundred",
        "the square root of 18",
        "Janet makes 3 times 6",
        "two to the power 18",
        "the number divided by 18",
        "she has 18 more",
        "Janet made seven hundred and 18",
    ],
)
def test_a_sentence_that_changes_its_number_is_left(sentence: str):
    assert drop_statement(sentence) == sentence
    judged = judge(Pair("18", sentence, None, None, None, False), 5)
    assert isinstance(judged, Algebra) or judged.verdict is not Verdict.CORRECT


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("Friday", "on a Friday", Verdict.CORRECT),
        ("Friday", "not on a Friday", Verdict.WRONG),
        ("Yes", "yes, it is", Verdict.CORRECT),
        ("Yes", "yes, it is not", Verdict.WRONG),
        ("No", "No, it isn't", Verdict.CORRECT),
        ("\\frac{9}{2}", "four and a half", Verdict.CORRECT),
        ("5", "t = 5\\text{ min}", Verdict.CORRECT),
        ("\\min(3,5)", "\\text{min}(3,5)", Verdict.CORRECT),
        ("1.6e-19", "1.6 x 10^-19", Verdict.CORRECT),
        ("\\sqrt[3]{4}", "\\root 3 \\of 4", Verdict.CORRECT),
    ],
)
def test_verdicts_on_answers_in_words(gold: str, answer: str, verdict: Verdict):
    judged = judge(Pair(gold, answer, None, None, None, False), 5)
    assert not isinstance(judged, Algebra)
    assert judged.verdict is verdict
