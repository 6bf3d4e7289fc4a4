"""A grading process: reads pairs as JSON lines from standard input, writes one verdict for each to standard output.

Run as `python -m ladle.grading.worker SETTINGS`. It is started once and grades thousands of answers; the pool ends it
where a limit demands, and starts another. JSON and not pickle, so that nothing it says can make its parent run code.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from ladle.grading.comparing.judge import Algebra, judge
from ladle.grading.confine import CodeGuard, CpuLimitReached, cpu_limit, limit_memory
from ladle.grading.protocol import LOADING, READY
from ladle.grading.verdict import Judgement, Pair, Verdict

MAX_REASON_CHARACTERS = 200


def main() -> None:
    """Serve pairs until standard input ends."""
    settings = json.loads(sys.argv[1])
    requests, replies = _take_channels()
    limit_memory(settings["memory_mebibytes"])
    guard = CodeGuard()
    guard.install()
    _reply(replies, READY)
    grading = _Grading(settings["cpu_seconds"], settings["rounding_digits"], guard, replies)
    for line in requests:
        started = time.perf_counter()
        judgement = grading.judge(Pair(*json.loads(line)))
        seconds = time.perf_counter() - started - grading.take_seconds_loading()
        _reply(replies, [judgement.verdict, judgement.reason[:MAX_REASON_CHARACTERS], round(seconds, 6)])


def _take_channels() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes to the parent for verdicts alone; whatever a library prints goes nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return requests, replies


def _reply(replies: BinaryIO, message: Any) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


class _Grading:
    """Judges pairs within the limits; loads math-verify when first needed, which is not charged to the answer."""

    def __init__(self, cpu_seconds: float, rounding_digits: int, guard: CodeGuard, replies: BinaryIO) -> None:
        self._cpu_seconds = cpu_seconds
        self._rounding_digits = rounding_digits
        self._guard = guard
        self._replies = replies
        self._judge_algebra: Callable[[Algebra], Judgement] | None = None
        self._seconds_loading = 0.0

    def judge(self, pair: Pair) -> Judgement:
        """Return the verdict on a pair, whatever happens on the way."""
        started = time.process_time()
        judgement = self._within_limits(lambda: judge(pair, self._rounding_digits), self._cpu_seconds)
        if isinstance(judgement, Judgement):
            return judgement
        left = judgement
        spent = time.process_time() - started
        judge_algebra = self._judge_algebra or self._load()
        self._guard.take_refused()
        judged = self._within_limits(lambda: judge_algebra(left), max(self._cpu_seconds - spent, 0.01))
        assert isinstance(judged, Judgement)
        refused = self._guard.take_refused()
        if refused and judged.verdict is Verdict.WRONG:
            # sympy swallowed the refusal on its way to "not equal", which is then no finding
            return Judgement(Verdict.UNPARSED, f"sympy may not use {refused} to compare it")
        return judged

    def take_seconds_loading(self) -> float:
        """Return the wall time that loading took since the last call."""
        seconds, self._seconds_loading = self._seconds_loading, 0.0
        return seconds

    def _load(self) -> Callable[[Algebra], Judgement]:
        started = time.perf_counter()
        _reply(self._replies, LOADING)
        with self._guard.paused():
            from ladle.grading.comparing.symbolic import judge_algebra, warm_up  # sympy: most runs never need it

            warm_up()
        self._judge_algebra = judge_algebra
        _reply(self._replies, READY)
        self._seconds_loading = time.perf_counter() - started
        return judge_algebra

    def _within_limits(self, work: Callable[[], Judgement | Algebra], cpu_seconds: float) -> Judgement | Algebra:
        try:
            with cpu_limit(cpu_seconds):
                return work()
        except CpuLimitReached:
            return Judgement(Verdict.TIMEOUT, f"more than {self._cpu_seconds:g} s of CPU time")
        except MemoryError:
            return Judgement(Verdict.TIMEOUT, "more memory than a worker may use")
        except RecursionError:
            return Judgement(Verdict.UNPARSED, "nested too deep")
        except Exception as error:  # noqa: BLE001 - the boundary: whatever a library meets in an answer is its own verdict
            return Judgement(Verdict.UNPARSED, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
