"""The answer is found by upstream's rules in their order, and the rule is named."""

from __future__ import annotations

import time

import pytest

from ladle.grading.extract import bare_answer, extract_answer


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
        ("5 and then 6,000 dollars", "6,000", "last_number"),
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


@pytest.mark.parametrize("piece", ["\\boxed{", "{", "}", "the answer is ", "<think>", "1,", "\\boxed{1}"])
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
