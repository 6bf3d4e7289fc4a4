"""The grader as its users see it: verdicts in order, completions, the fast path, the cache."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladle.errors import UserError
from ladle.grading import pool
from ladle.grading.grade import (
    READ_AHEAD,
    Grader,
    GraderConfig,
    Pair,
    Verdict,
    VerdictCache,
    judge_here,
    key_of,
    salt_of,
)
from ladle.grading.judge import judge
from ladle.grading.verdict import AnswerType, Judgement

PAIRS = [
    (Pair("18", "18"), Verdict.CORRECT),
    (Pair("18", "19"), Verdict.WRONG),
    (Pair(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), Verdict.CORRECT),
    (Pair(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{2}}"), Verdict.WRONG),
    (Pair("18", "1((8"), Verdict.UNPARSED),
    (Pair("1/2", r"\int_0^1 x\,dx"), Verdict.CORRECT),
    (Pair("1/2", r"\int_0^1 x^2\,dx"), Verdict.WRONG),
    (Pair("5", r"\sum_{k=1}^{10^{12}} \frac{1}{k}"), Verdict.TIMEOUT),
]


def test_the_four_verdicts_in_order(grader: Grader) -> None:
    grades = list(grader.grade_many(pair for pair, _ in PAIRS))
    assert [grade.verdict for grade in grades] == [verdict for _, verdict in PAIRS]
    assert all(grade.reason and grade.method == "given" and 0 <= grade.seconds <= 3 for grade in grades)


def test_completions_are_searched_first(grader: Grader) -> None:
    grades = grader.grade_completions(
        [
            Pair("18", r"<think>\boxed{3}</think> So \boxed{18}."),
            Pair("18", "The answer is 18."),
            Pair("18", "I do not know."),
            Pair("2,3", r"$x=\boxed{3}$ or $x=\boxed{2}$", multiple=True),
        ]
    )
    found = [(grade.verdict, grade.extracted, grade.method) for grade in grades]
    assert found == [
        (Verdict.CORRECT, "18", "boxed"),
        (Verdict.CORRECT, "18", "phrase"),
        (Verdict.UNPARSED, "", "none"),
        (Verdict.CORRECT, "3, 2", "boxed"),
    ]


def test_the_input_is_read_ahead_and_no_further(grader: Grader) -> None:
    read = itertools.count()
    grades = grader.grade_many(Pair(str(next(read)), "5") for _ in range(10**9))
    assert next(grades).verdict is Verdict.WRONG
    assert next(read) <= READ_AHEAD


def test_equal_pairs_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    judge_all = pool.WorkerPool.judge_all

    def count(self: pool.WorkerPool, pairs: list[Pair]) -> list[Judgement]:
        sent.append(len(pairs))
        return judge_all(self, pairs)

    monkeypatch.setattr(pool.WorkerPool, "judge_all", count)
    pair = Pair("x+1", "1+x")
    with Grader() as grader:
        assert {grade.verdict for grade in grader.grade_many([pair] * 50)} == {Verdict.CORRECT}
        assert grader.grade(pair).verdict is Verdict.CORRECT
    assert sum(sent) == 1


def test_a_cached_verdict_needs_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GraderConfig(cache=str(tmp_path / "verdicts.sqlite"))
    pairs = [pair for pair, verdict in PAIRS if verdict is not Verdict.TIMEOUT]
    with Grader(config) as grader:
        first = [(grade.verdict, grade.reason) for grade in grader.grade_many(pairs)]

    def refuse(self: object, config: GraderConfig) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(pool._Worker, "__init__", refuse)
    with Grader(config) as grader:
        assert [(grade.verdict, grade.reason) for grade in grader.grade_many(pairs)] == first


def test_long_answers_are_not_read_but_the_gold_itself_is_right(grader: Grader) -> None:
    long = "1+" * 5000 + "1"
    assert grader.grade(Pair("5", long)).verdict is Verdict.UNPARSED
    assert grader.grade(Pair(long, long)).verdict is Verdict.CORRECT


def test_an_unknown_type_is_the_users_to_fix(grader: Grader) -> None:
    with pytest.raises(UserError, match="'nubmer'"):
        list(grader.grade_many([Pair("1", "1", type="nubmer")]))


def test_workers_do_not_change_verdicts() -> None:
    pairs = [Pair(f"{n}\\sqrt{{2}}", f"\\sqrt{{{2 * n * n + n % 2}}}") for n in range(1, 60)]
    verdicts = []
    for workers in (1, 2):
        with Grader(GraderConfig(workers=workers)) as grader:
            verdicts.append([(grade.verdict, grade.reason) for grade in grader.grade_many(pairs)])
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ladle.grading.pool", ["torch", "transformers", "datasets", "numpy", "pyarrow", "sympy", "mpmath"]),
        ("ladle.grading.grade", ["torch", "transformers", "datasets", "numpy", "pyarrow", "sympy"]),
        ("ladle.grading.worker", ["torch", "transformers", "datasets", "numpy", "pyarrow", "sympy", "pydantic"]),
        ("ladle.grading.symbolic", ["torch", "transformers", "datasets", "numpy", "pyarrow"]),
    ],
)
def test_what_is_imported(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The fast path says nothing that the general way would not.


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
    fast = judge_here(Pair(gold, answer), 2000)
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
        judgement = judge_here(Pair(gold, answer), 2000)
        assert judgement is not None
        assert judgement.verdict is Verdict.CORRECT
    judgement = judge_here(Pair("18", "$19$"), 2000)
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
    assert judge_here(pair, 2000) is None


def test_words_are_not_numbers() -> None:
    assert judge_here(Pair("12", "12.0", AnswerType.TEXT), 2000) is None


# Verdicts kept between runs.


def test_verdicts_survive_the_process_that_found_them(tmp_path: Path) -> None:
    kept = {bytes([n]) * 16: Judgement(Verdict.WRONG, f"reason {n}") for n in range(200)}
    cache = VerdictCache(str(tmp_path / "deep" / "verdicts.sqlite"))
    cache.put_many(kept)
    cache.close()
    again = VerdictCache(str(tmp_path / "deep" / "verdicts.sqlite"))
    assert again.get_many([*kept, b"x" * 16]) == kept
    again.close()


def test_timeouts_are_not_kept(tmp_path: Path) -> None:
    cache = VerdictCache(str(tmp_path / "verdicts.sqlite"))
    cache.put_many({b"1" * 16: Judgement(Verdict.TIMEOUT, "slow")})
    assert cache.get_many([b"1" * 16]) == {}
    cache.close()


def test_every_field_and_setting_is_in_the_key() -> None:
    pair = Pair("1", "2", "int", 0.1, "cm", True)
    changed = {"gold": "3", "answer": "3", "type": "set", "tolerance": 0.2, "unit": "m", "multiple": False}
    salt = salt_of(GraderConfig())
    keys = {key_of(pair._replace(**{name: value}), salt) for name, value in changed.items()}
    keys |= {key_of(pair, salt), key_of(pair, salt_of(GraderConfig(rounding_digits=6)))}
    assert len(keys) == len(changed) + 2
    assert salt == salt_of(GraderConfig(workers=4, cache="elsewhere"))


def test_a_file_that_is_not_a_cache_is_the_users_to_fix(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    with pytest.raises(UserError, match="notes.txt"):
        VerdictCache(str(path))


def test_golds_that_nothing_can_match_are_known_before_any_answer(grader: Grader) -> None:
    golds = ["18", r"\frac{1}{2}", r"\int_0^1 x\,dx", "Friday", "B", "(1,2", r"\begin{cases} 1 \\ 2 \end{cases}"]
    problems = list(grader.gold_problems(Pair(gold, "not looked at") for gold in golds))
    assert [problem is None for problem in problems] == [True, True, True, True, True, False, False]
    assert "brackets" in str(problems[5])


def test_a_cut_completion_gives_only_what_is_complete(grader: Grader) -> None:
    completions = [r"So \boxed{18} and", "The answer is 18. And", "The answer is 18", "It is 9 + 9 = 18", r"\boxed{18"]
    grades = grader.grade_completions([Pair("18", text) for text in completions], truncated=[True] * 5)
    assert [grade.verdict for grade in grades] == [Verdict.CORRECT] * 2 + [Verdict.UNPARSED] * 3
    with pytest.raises(ValueError, match="shorter"):
        list(grader.grade_completions([Pair("1", "1")] * 2, truncated=[True]))
