"""The answer is found by upstream's rules in their order, and the rule is named; sentences around it are dropped."""

from __future__ import annotations

import time

import pytest

from ladle.grading.extract import bare_answer, drop_statement, extract_answer
from ladle.grading.judge import Algebra, judge
from ladle.grading.verdict import Pair, Verdict


@pytest.mark.parametrize(
    ("completion", "answer", "method"),
    [
        (r"So \boxed{5}.", "5", "boxed"),
        (r"First \boxed{4}, but no: \boxed{5}.", "5", "boxed"),
        (r"\boxed{\frac{1}{2}} apples", r"\frac{1}{2}", "boxed"),
        (r"\fbox{7}", "7", "boxed"),
        (r"\boxed{\boxed{3}}", r"\boxed{3}", "boxed"),
        (r"\boxed{12} and then \boxed{13", "12", "boxed"),  # the last one was cut off
        (r"\boxed{12} and then \boxed{}", "12", "boxed"),
        (r"\boxed 9 it is", "9", "boxed"),
        (r"<think>\boxed{1}</think> It is \boxed{2}", "2", "boxed"),
        (r"<think>\boxed{1}</think> It is 4.", "4", "last_number"),
        ("Final Answer: The final answer is $x+1$. I hope it is correct.", "x+1", "final_answer_phrase"),
        ("The answer is $\\frac{1}{2}$ because 2 halves make 1.", r"\frac{1}{2}", "phrase"),
        ("The answer is 18 eggs. She sold 3.", "18 eggs", "phrase"),
        ("the answer is: 3.5", "3.5", "phrase"),
        ("**The answer is 42**", "42", "phrase"),
        ("所以答案是12。", "12", "phrase"),
        ("5 and then 6,000 dollars", "6,000 dollars", "last_number"),
        ("it falls by -3.25", "-3.25", "last_number"),
        ("I do not know", "", "none"),
        ("<think> 5, no 6, no \\boxed{7}", "", "none"),  # cut off in thought: nothing was answered
        ("", "", "none"),
    ],
)
def test_rules(completion: str, answer: str, method: str) -> None:
    assert extract_answer(completion) == (answer, method)


def test_boxes_side_by_side_are_one_list_where_several_answers_are_asked_for() -> None:
    completion = r"Try \boxed{9}. So $x=\boxed{2}$ and $x=\boxed{3}$."
    assert extract_answer(completion).answer == "3"
    assert extract_answer(completion, multiple=True).answer == "2, 3"


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "}",
        "the answer is ",
        "<think>",
        "1,",
        "\\boxed{1}",
        "<answer>",
        "a (ab",
        " ",
        "*5",
        "answer=",
        "$5 ",
    ],
)
def test_linear_time(piece: str) -> None:
    started = time.perf_counter()
    extract_answer(piece * 40_000)
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        (r"So the answer is $\boxed{5}$.", "5"),
        ("The answer is 42.", "42"),
        (r"Thus we get \boxed{3,4}", "3,4"),
        (r"p + q = \boxed{809}", r"p + q = \boxed{809}"),
        ("18 eggs per day", "18 eggs per day"),
        (r"kx \text{ for some constant } k", r"kx \text{ for some constant } k"),
    ],
)
def test_a_sentence_gives_the_answer_it_ends_in(answer: str, bare: str) -> None:
    assert bare_answer(answer) == bare


# Sentences.


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


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"<think>\boxed{4}</think> \boxed{\frac{1}{2}", r"\frac{1}{2}"),  # to the end, as it never closes
        ("so 3/4.", "4"),
        ("1,234 or .5.", ".5"),
        ("The answer is $5 + 3$. Or 9.", "$5 + 3$. Or 9"),
        ("the final answer is $7$. I hope it is.", "7"),
        ("答案是12。\n\n因此", "12。"),
        ("nothing", ""),
    ],
)
def test_upstreams_rule(completion: str, answer: str) -> None:
    """What `extract_answer` of QwenLM/Qwen2.5-Math gives before its `strip_string`."""
    assert extract_answer(completion, rule="upstream").answer == answer
