"""Grading processes that are killed and replaced where a limit demands, so that no answer can stop a run.

Each worker is sent a few pairs ahead and answers them in order, so the pair it is at is always known. An answer whose
worker used up its CPU time is a timeout at once. One that took too long by the clock, or whose worker died, is tried
once more with nothing else running: only then the machine's load is not to blame.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from ladle.grading.verdict import LOADING, READY, Judgement, Pair, Verdict

START_TIMEOUT_SECONDS = 120.0
MAX_STARTS = 5
SHARE_OF_ONE_TRY = 0.47
"""Part of the wall limit that each of the two tries has; the rest is for noticing and killing."""
MAX_PAIRS_AHEAD = 32
MAX_BYTES_AHEAD = 8192  # less than the smallest pipe holds, so that sending never blocks


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


class Timed(NamedTuple):
    """A judgement and the wall time it took, in seconds."""

    judgement: Judgement
    seconds: float


class _Lost(NamedTuple):
    """A pair whose worker was killed by the clock or died."""

    index: int
    seconds: float
    reason: str


class WorkerPool:
    """A context manager that judges pairs in `config.workers` processes; they are started when first needed."""

    def __init__(self, config: GraderConfig) -> None:
        self._config = config
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def judge_all(self, pairs: Sequence[Pair]) -> list[Timed]:
        """Return the judgement of each pair, in their order."""
        results: dict[int, Timed] = {}
        for first in self._judge(pairs, range(len(pairs)), self._config.workers, results):
            for second in self._judge(pairs, [first.index], 1, results):
                seconds = first.seconds + second.seconds
                results[first.index] = Timed(Judgement(Verdict.TIMEOUT, f"{second.reason}, twice"), seconds)
        return [results[index] for index in range(len(pairs))]

    def _judge(
        self, pairs: Sequence[Pair], indices: Sequence[int], workers: int, results: dict[int, Timed]
    ) -> list[_Lost]:
        """Judge the pairs of these indices into `results`; return those that no worker finished."""
        limit = self._config.wall_seconds * SHARE_OF_ONE_TRY
        waiting = deque(indices)
        lost: list[_Lost] = []
        while waiting or any(worker.ahead for worker in self._workers):
            while len(self._workers) < min(workers, len(waiting)):
                self._workers.append(_start_worker(self._config))
            for worker in self._workers[:workers]:
                worker.send_ahead(waiting, pairs)
            self._wait(limit)
            for worker in list(self._workers):
                results.update(worker.collect())
                if worker.is_gone or worker.seconds_at_current() > limit:
                    lost.extend(self._remove(worker, waiting, limit, results))
        return lost

    def _wait(self, limit: float) -> None:
        """Sleep until a worker says something, or the first of them could be over its limit."""
        busy = [worker for worker in self._workers if worker.ahead]
        if not busy:
            return
        timeout = max(0.0, min(limit - worker.seconds_at_current() for worker in busy) + 0.001)
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.output, selectors.EVENT_READ)
            selector.select(timeout)

    def _remove(self, worker: _Worker, waiting: deque[int], limit: float, results: dict[int, Timed]) -> list[_Lost]:
        """End a worker that is over its limit or dead, and put back what it had not begun."""
        seconds = worker.seconds_at_current()
        status, answered = worker.end()
        results.update(answered)
        self._workers.remove(worker)
        if not worker.ahead:
            return []
        current, *rest = worker.ahead
        waiting.extendleft(reversed(rest))
        if status == -signal.SIGVTALRM:
            reason = f"more than {self._config.cpu_seconds:g} s of CPU time"
            results[current] = Timed(Judgement(Verdict.TIMEOUT, reason), seconds)
            return []
        reason = f"more than {limit:.2g} s" if seconds > limit else f"the worker ended with status {status}"
        return [_Lost(current, seconds, reason)]


def _start_worker(config: GraderConfig) -> _Worker:
    """Start a process; one that dies on the way, as the machine may kill any, is started again.

    Raises:
        RuntimeError: it died again and again.
    """
    for _ in range(MAX_STARTS):
        worker = _Worker(config)
        if worker.becomes_ready():
            return worker
        worker.end()
    raise RuntimeError(f"a grading worker did not start in {MAX_STARTS} tries; its own message is above")


class _Worker:
    """One process, and the pairs that it was sent and has not answered yet."""

    def __init__(self, config: GraderConfig) -> None:
        settings = config.model_dump_json(include={"cpu_seconds", "memory_mebibytes", "rounding_digits"})
        # Not multiprocessing: its children run the parent's main module again, which may be a training script.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ladle.grading.worker", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # an interrupt at the terminal is the parent's to handle
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout
        os.set_blocking(self.output.fileno(), False)
        self._received = b""
        self._sizes: deque[int] = deque()
        self._since = 0.0
        self.ahead: deque[int] = deque()
        self.is_gone = False
        """Whether the process has closed its end."""

    def becomes_ready(self) -> bool:
        """Wait until the process has started; False if it has not in time, or died."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            while time.monotonic() < deadline and not self.is_gone:
                selector.select(deadline - time.monotonic())
                if READY in self._read_messages():
                    return True
        return False

    def send_ahead(self, waiting: deque[int], pairs: Sequence[Pair]) -> None:
        """Send waiting pairs as far ahead as the pipe holds."""
        while waiting and len(self.ahead) < MAX_PAIRS_AHEAD and not self.is_gone:
            line = json.dumps(pairs[waiting[0]]).encode() + b"\n"
            if self.ahead and sum(self._sizes) + len(line) > MAX_BYTES_AHEAD:
                return
            try:
                self._input.write(line)
            except BrokenPipeError:
                self.is_gone = True
                return
            if not self.ahead:
                self._since = time.monotonic()
            self.ahead.append(waiting.popleft())
            self._sizes.append(len(line))

    def collect(self) -> dict[int, Timed]:
        """Return what has been answered since the last call."""
        found: dict[int, Timed] = {}
        for message in self._read_messages():
            self._since = time.monotonic() + (START_TIMEOUT_SECONDS if message == LOADING else 0)
            if message not in (LOADING, READY):
                verdict, reason, seconds = message
                found[self.ahead.popleft()] = Timed(Judgement(Verdict(verdict), reason), seconds)
                self._sizes.popleft()
        return found

    def _read_messages(self) -> list[Any]:
        while True:
            try:
                data = os.read(self.output.fileno(), 65536)
            except BlockingIOError:
                break
            self._received += data
            if not data:
                self.is_gone = True
                break
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines]

    def seconds_at_current(self) -> float:
        """Return how long the process has been at its current pair; 0 without one, less while it loads libraries."""
        return time.monotonic() - self._since if self.ahead else 0.0

    def end(self) -> tuple[int, dict[int, Timed]]:
        """Kill the process, unless it is dead already; return its exit status (minus a signal) and last answers."""
        if self._process.poll() is None and not self.is_gone:
            self._process.kill()
        status, answered = self._process.wait(), self.collect()
        self._input.close()
        self.output.close()
        return status, answered
