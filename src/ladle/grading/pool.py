"""Grading processes that are killed and replaced where a limit demands, so that no answer can stop a run.

Each worker is sent a few pairs at a time and answers them in order, so the pair it is at is always known. An answer
whose worker used up its CPU time is a timeout at once. One that took too long by the clock, or whose worker died, is
tried once more with nothing else running: only then the machine's load is not to blame.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ladle.grading.verdict import LOADING, READY, Judgement, Pair, Verdict

START_TIMEOUT_SECONDS = 120.0
MAX_STARTS = 5
SHARE_OF_ONE_TRY = 0.47  # of the wall limit; the rest is for noticing and killing
PAIRS_AT_A_TIME = 8  # the longest eight fit into a socket's buffer, so that sending does not wait for an answer


class GraderConfig(BaseModel):
    """How one answer is graded and what it may cost.

    CPU time is the limit that decides; the wall limit only catches a process that a loaded machine starves or that no
    signal reaches, so that the load of the machine does not change a verdict.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    cpu_seconds: float = Field(default=0.5, gt=0, le=60)
    """CPU time for one answer, in seconds; past it the verdict is `timeout`."""

    wall_seconds: float = Field(default=3.0, gt=0, le=600)
    """Hard limit on the wall time of one answer, in seconds; its first try and the lone retry share it."""

    memory_mebibytes: int = Field(default=1024, ge=256)
    """Address space of one worker process, in MiB."""

    max_characters: int = Field(default=2000, ge=1, le=4000)
    """Longer answers are `unparsed` unless they equal the gold text; the longest gold of the six benchmarks has 210."""

    rounding_digits: int = Field(default=5, ge=2, le=30)
    """A decimal counts for an exact value that rounds or truncates to it from this many significant digits on.

    Five accept 3.1416 for pi and refuse 1.414 for the root of 2; upstream's relative tolerance of 1e-4 lies between.
    """

    workers: int = Field(default=1, ge=1)
    """Worker processes; verdicts do not depend on it."""

    cache: str | None = None
    """SQLite file that keeps verdicts between runs; none by default."""


class WorkerPool(AbstractContextManager["WorkerPool"]):
    """A context manager that judges pairs in `config.workers` processes; they are started when first needed."""

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._idle: list[_Worker] = []

    def __exit__(self, *raised: object) -> None:
        while self._idle:
            self._idle.pop().end()

    def judge_all(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Return the judgement of each pair, in their order."""
        some = [pairs[start : start + PAIRS_AT_A_TIME] for start in range(0, len(pairs), PAIRS_AT_A_TIME)]
        with ThreadPoolExecutor(self._config.workers) as threads:  # each waits for one process
            results = [judgement for several in threads.map(self._judge, some) for judgement in several]
        for index, first in enumerate(results):
            if first.is_lost:
                (second,) = self._judge([pairs[index]])
                if second.is_lost:
                    second = Judgement(second.verdict, f"{second.reason}, twice", first.seconds + second.seconds)
                results[index] = second
        return results

    def _judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        results: list[Judgement] = []
        while len(results) < len(pairs):
            worker = self._idle.pop() if self._idle else self._start_worker()
            results.extend(worker.judge(pairs[len(results) :]))
            if not worker.has_ended:
                self._idle.append(worker)
        return results

    def _start_worker(self) -> _Worker:
        """Start a process; one that dies on the way, as the machine may kill any, is started again.

        Raises:
            RuntimeError: it died again and again.
        """
        for _ in range(MAX_STARTS):
            worker = _Worker(self._config)
            if worker.receive(START_TIMEOUT_SECONDS) == READY:
                return worker
            worker.end()
        raise RuntimeError(f"a grading worker did not start in {MAX_STARTS} tries; its own message is above")


class _Worker:
    """One process, which reads pairs and writes verdicts as JSON lines on a socket."""

    def __init__(self, config: GraderConfig) -> None:
        settings = config.model_dump_json(include={"cpu_seconds", "memory_mebibytes", "rounding_digits"})
        self._cpu_seconds, self._limit = config.cpu_seconds, config.wall_seconds * SHARE_OF_ONE_TRY
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        self.has_ended = False
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",  # what sympy makes of infinities hangs on the order of its sets
        }
        # Not multiprocessing: its children run the parent's main module again, which may be a training script.
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ladle.grading.worker", settings],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=os.environ | environment,
                start_new_session=True,  # an interrupt at the terminal is the parent's to handle
            )

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Return the judgements of the pairs, up to the first that the process does not survive."""
        self._socket.settimeout(self._limit)
        with suppress(OSError):  # dead or stuck, which shows when no answer comes
            self._socket.sendall(b"".join(json.dumps(pair).encode() + b"\n" for pair in pairs))
        results: list[Judgement] = []
        started = time.monotonic()
        while len(results) < len(pairs):
            message = self.receive(self._limit)
            now = time.monotonic()
            if message == LOADING:
                self.receive(START_TIMEOUT_SECONDS)
                started += time.monotonic() - now
            elif message is not None:
                verdict, reason = message
                results.append(Judgement(Verdict(verdict), reason, round(now - started, 6)))
                started = now
            elif (status := self.end()) == -signal.SIGVTALRM:
                reason = f"more than {self._cpu_seconds:g} s of CPU time"
                return [*results, Judgement(Verdict.TIMEOUT, reason, now - started)]
            else:
                is_late = now - started > self._limit
                reason = f"more than {self._limit:.2g} s" if is_late else f"the worker ended with status {status}"
                return [*results, Judgement(Verdict.TIMEOUT, reason, now - started, is_lost=True)]
        return results

    def receive(self, seconds: float) -> Any:
        """Return the next message; None if the process is dead, or silent for so long."""
        self._socket.settimeout(seconds)
        try:
            line = self._lines.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def end(self) -> int:
        """Kill the process, unless it is dead already; return its exit status (minus a signal)."""
        self.has_ended = True
        self._process.kill()
        self._lines.close()
        self._socket.close()
        return self._process.wait()
