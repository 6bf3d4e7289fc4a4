"""Workers are killed and replaced without losing, repeating or reordering a verdict."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import psutil
import pytest

from ladle.grading.grade import GraderConfig
from ladle.grading.pool import WorkerPool
from ladle.grading.verdict import Pair, Verdict

ENDLESS = r"\sum_{k=1}^{10^{12}} \frac{1}{k}"
ENDLESS_GOLD = r"\int_0^1 x\,dx"


def numbered(count: int) -> list[Pair]:
    """Every third one is right."""
    return [Pair(f"{n}+\\sqrt{{2}}", f"\\sqrt{{2}}+{n if n % 3 == 0 else n + 1}") for n in range(count)]


def expected(count: int) -> list[Verdict]:
    return [Verdict.CORRECT if n % 3 == 0 else Verdict.WRONG for n in range(count)]


@pytest.mark.parametrize("workers", [1, 3])
def test_order_is_kept_whatever_the_number_of_workers(workers: int) -> None:
    with WorkerPool(GraderConfig(workers=workers)) as pool:
        for count in (0, 1, 150):
            timed = pool.judge_all(numbered(count))
            assert [one.verdict for one in timed] == expected(count)


def test_an_answer_out_of_cpu_time_costs_only_itself() -> None:
    pairs = numbered(20)
    pairs[7] = Pair("5", ENDLESS)
    with WorkerPool(GraderConfig(cpu_seconds=0.3)) as pool:
        timed = pool.judge_all(pairs)
    assert timed[7].verdict is Verdict.TIMEOUT
    assert "0.3 s of CPU time" in timed[7].reason
    assert [one.verdict for i, one in enumerate(timed) if i != 7] == [v for i, v in enumerate(expected(20)) if i != 7]


def children() -> list[int]:
    """Return the worker processes of this one."""
    workers = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # ended, as children of other tests may at any time
            if "ladle.grading.worker" in " ".join(child.cmdline()):
                workers.append(child.pid)
    return workers


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the workers in /proc")  # noqa: PTH110


@needs_proc
def test_a_killed_worker_is_replaced_and_its_pairs_are_judged() -> None:
    with WorkerPool(GraderConfig(workers=2)) as pool:
        pool.judge_all(numbered(2))

        def kill() -> None:
            for _ in range(4):
                time.sleep(0.05)
                for pid in children():
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        timed = pool.judge_all(numbered(600))
        killer.join()
        verdicts = [one.verdict for one in timed]
        wanted = expected(600)
        assert all(found is want or found is Verdict.TIMEOUT for found, want in zip(verdicts, wanted, strict=True))
        assert verdicts.count(Verdict.TIMEOUT) <= 2  # a pair whose worker was killed twice
        assert [one.verdict for one in pool.judge_all(numbered(9))] == expected(9)


@needs_proc
def test_a_stuck_worker_is_killed_by_the_clock_and_the_pair_tried_once_more() -> None:
    of_others = set(children())
    with WorkerPool(GraderConfig(wall_seconds=2.0)) as pool:
        pool.judge_all(numbered(1))
        (stuck,) = set(children()) - of_others
        os.kill(stuck, signal.SIGSTOP)
        started = time.perf_counter()
        timed = pool.judge_all(numbered(4))
        assert time.perf_counter() - started > 0.5
        assert [one.verdict for one in timed] == expected(4)
        assert stuck not in children()


@needs_proc
def test_no_worker_survives() -> None:
    of_others = set(children())
    with WorkerPool(GraderConfig(workers=2)) as pool:
        pool.judge_all(numbered(50))
        ours = set(children()) - of_others
        assert len(ours) == 2
    assert not ours & set(children())


def test_every_wall_time_is_within_the_limit() -> None:
    config = GraderConfig()
    with WorkerPool(config) as pool:
        timed = pool.judge_all([Pair(ENDLESS_GOLD, answer) for answer in ("1/2", ENDLESS, "9^{9^{9^{9}}}", "(10^9)!")])
    assert all(one.seconds <= config.wall_seconds for one in timed)
    assert timed[0].verdict is Verdict.CORRECT


@needs_proc
def test_the_order_of_sets_is_the_same_in_every_worker() -> None:
    """What sympy makes of infinities hangs on it, and verdicts would differ from run to run."""
    of_others = set(children())
    with WorkerPool(GraderConfig()) as pool:
        pool.judge_all(numbered(1))
        (worker,) = set(children()) - of_others
        with open(f"/proc/{worker}/environ", "rb") as environment:  # noqa: PTH123
            assert b"PYTHONHASHSEED=0" in environment.read().split(b"\0")
