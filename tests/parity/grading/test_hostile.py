"""Answers made to break a grader cost seconds at most, run nothing, and the next answer is judged as ever."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ladle.grading.grade import Grader, GraderConfig
from ladle.grading.verdict import Pair, Verdict

from .hostile import code_answers, hostile_answers

GOLDS = ("5", r"x^2+\sqrt{y}", r"\sum_{k=1}^{n} k^2")  # the last one sends every answer to math-verify
SAME_AS_FIVE = {"\u0665", "\u4e94", "\uff15\uff0b\uff10", "\u200b" * 500 + "5"}  # Arabic, Chinese, wide, invisible


@pytest.mark.slow
@pytest.mark.parametrize("gold", GOLDS)
def test_each_is_judged_within_the_limit_and_none_ends_the_run(gold: str) -> None:
    answers = hostile_answers()
    assert len(answers) >= 200
    config = GraderConfig()
    with Grader(config) as grader:
        for answer in answers:
            grade = grader.grade(Pair(gold, answer))
            assert grade.seconds <= config.wall_seconds, answer[:80]
            assert grade.verdict is not Verdict.CORRECT or (gold == "5" and answer in SAME_AS_FIVE), answer[:80]
        assert grader.grade(Pair("x+1", "1+x")).verdict is Verdict.CORRECT


@pytest.mark.slow
def test_completions_as_well() -> None:
    with Grader() as grader:
        started = time.perf_counter()
        completions = [Pair("5", f"So \\boxed{{{answer}}} is the answer is {answer}") for answer in code_answers()]
        assert all(grade.seconds <= 3 for grade in grader.grade_completions(completions))
        assert time.perf_counter() - started < 60


# Judges the answers without the worker's own guard, so that this hook is the one that would see code being made.
_LISTENER = """
import json, sys
from ladle.grading.judge import Algebra, judge
from ladle.grading.symbolic import judge_algebra, warm_up
from ladle.grading.verdict import Pair
warm_up()
seen = []
def listen(event, arguments):
    if event in ("exec", "compile"):
        source = arguments[0]
        text = repr(source.co_code if hasattr(source, "co_code") else source)
        name = source.co_filename if hasattr(source, "co_filename") else arguments[1]
        if not str(name).endswith(".py"):
            seen.append([event, text[:200]])
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "socket.connect"):
        seen.append([event, ""])
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append([event, str(arguments[0])])
answers = json.load(sys.stdin)
sys.addaudithook(listen)
for answer in answers:
    for gold in ("5", "\\\\sum_{k=1}^{3} k", answer + "+1"):
        try:
            judgement = judge(Pair(gold, answer), 5)
            if isinstance(judgement, Algebra):
                judge_algebra(judgement)
        except Exception as error:
            print(type(error).__name__, error, file=sys.stderr)
print(json.dumps(seen))
"""


def test_no_payload_reaches_python(tmp_path: Path) -> None:
    """A canary that no payload touches, and an audit hook that sees no code made while they are judged."""
    done = subprocess.run(
        [sys.executable, "-c", _LISTENER],
        input=json.dumps(code_answers()),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == []
    assert list(tmp_path.iterdir()) == []


def test_the_listener_does_listen(tmp_path: Path) -> None:
    code = _LISTENER.replace("answers = json.load(sys.stdin)", "answers = []").replace(
        "print(json", "eval('1+1'); print(json"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True
    )
    assert ["compile", "1+1"] in [[event, text.strip("b'")] for event, text in json.loads(done.stdout)]


def test_no_payload_makes_a_worker_touch_the_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Grader() as grader:
        for gold in ("5", r"\sum_{k=1}^{3} k"):
            grades = list(grader.grade_many(Pair(gold, answer) for answer in code_answers()))
            assert {grade.verdict for grade in grades} <= {Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMEOUT}
    assert list(tmp_path.iterdir()) == []
