"""Grading processes that are killed and replaced where a limit demands, so that no answer can stop a run.

Each worker is sent a few pairs ahead and answers them in order, so the pair it is at is always known. An answer whose
worker used up its CPU time is a timeout at once. One that took too long by the clock, or whose worker died, is tried
once more with nothing else running: only then is it not the machine's load that is to blame.
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
from dataclasses import astuple
from types import TracebackType
from typing import Any, NamedTuple, Self

from ladle.grading.config import GraderConfig
from ladle.grading.protocol import LOADING, READY
from ladle.grading.verdict import Judgement, Pair, Verdict

START_TIMEOUT_SECONDS = 120.0
MAX_STARTS = 5
SHARE_OF_ONE_TRY = 0.47
"""Part of the wall limit that each of the two tries has; the rest is for noticing and killing."""
MAX_PAIRS_AHEAD = 32
MAX_BYTES_AHEAD = 8192  # less than the smallest pipe holds, so that sending never blocks


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def judge_all(self, pairs: Sequence[Pair]) -> list[Timed]:
        """Return the judgement of each pair, in their order."""
        results: dict[int, Timed] = {}
        limit = self._config.wall_seconds * SHARE_OF_ONE_TRY
        lost = self._judge(pairs, range(len(pairs)), self._config.workers, limit, results)
        for first in lost:
            for second in self._judge(pairs, [first.index], 1, limit, results):
                seconds = first.seconds + second.seconds
                results[first.index] = Timed(Judgement(Verdict.TIMEOUT, f"{second.reason}, twice"), seconds)
        return [results[index] for index in range(len(pairs))]

    def _judge(
        self, pairs: Sequence[Pair], indices: Sequence[int], workers: int, limit: float, results: dict[int, Timed]
    ) -> list[_Lost]:
        """Judge the pairs of these indices into `results`; return those that no worker finished."""
        waiting = deque(indices)
        lost: list[_Lost] = []
        while waiting or any(worker.ahead for worker in self._workers):
            self._staff(min(workers, len(waiting)))
            for worker in self._workers[:workers]:
                worker.send_ahead(waiting, pairs)
            self._wait(limit)
            for worker in list(self._workers):
                results.update(worker.collect())
                if worker.is_gone() or worker.seconds_at_current() > limit:
                    lost.extend(self._replace(worker, waiting, limit, results))
        return lost

    def _staff(self, count: int) -> None:
        while len(self._workers) < count:
            self._workers.append(_start_worker(self._config))

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

    def _replace(self, worker: _Worker, waiting: deque[int], limit: float, results: dict[int, Timed]) -> list[_Lost]:
        """End a worker that is over its limit or dead, and put back what it had not begun."""
        seconds = worker.seconds_at_current()
        status = worker.end()
        results.update(worker.collect())
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
    """Start a process; one that dies on the way, as the machine may kill any, is started anew.

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
        settings = config.model_dump(include={"cpu_seconds", "memory_mebibytes", "rounding_digits"})
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        # Not multiprocessing: its children run the parent's main module again, which may be a training script.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ladle.grading.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # an interrupt at the terminal is the parent's to handle
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout
        os.set_blocking(self.output.fileno(), False)
        self._received = b""
        self._gone = False
        self.ahead: deque[int] = deque()
        self._sizes: deque[int] = deque()
        self._since = 0.0

    def becomes_ready(self) -> bool:
        """Wait until the process has started; False if it has not in time, or died."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            while time.monotonic() < deadline and not self._gone:
                selector.select(deadline - time.monotonic())
                if READY in self._read_messages():
                    return True
        return False

    def send_ahead(self, waiting: deque[int], pairs: Sequence[Pair]) -> None:
        """Send waiting pairs as far ahead as the pipe holds."""
        while waiting and len(self.ahead) < MAX_PAIRS_AHEAD and not self._gone:
            line = json.dumps(astuple(pairs[waiting[0]])).encode() + b"\n"
            if self.ahead and sum(self._sizes) + len(line) > MAX_BYTES_AHEAD:
                return
            try:
                self._input.write(line)
            except BrokenPipeError:
                self._gone = True
                return
            if not self.ahead:
                self._since = time.monotonic()
            self.ahead.append(waiting.popleft())
            self._sizes.append(len(line))

    def collect(self) -> dict[int, Timed]:
        """Return what has been answered since the last call."""
        found: dict[int, Timed] = {}
        for message in self._read_messages():
            if message == LOADING:
                self._since = time.monotonic() + START_TIMEOUT_SECONDS
                continue
            self._since = time.monotonic()
            if message != READY:
                verdict, reason, seconds = message
                found[self.ahead.popleft()] = Timed(Judgement(Verdict(verdict), reason), seconds)
                self._sizes.popleft()
        return found

    def _read_messages(self) -> list[Any]:
        self._drain()
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines]

    def _drain(self) -> None:
        while not self.output.closed:
            try:
                data = os.read(self.output.fileno(), 65536)
            except BlockingIOError:
                return
            self._received += data
            if not data:
                self._gone = True
                return

    def is_gone(self) -> bool:
        """Whether the process has closed its end."""
        return self._gone

    def seconds_at_current(self) -> float:
        """Return how long the process has been at its current pair; 0 without one, less while it loads libraries."""
        return time.monotonic() - self._since if self.ahead else 0.0

    def end(self) -> int:
        """Kill the process, unless it is dead already, and return its exit status, negative for a signal."""
        if self._process.poll() is None and not self._gone:
            self._process.kill()
        status = self._process.wait()
        self._drain()
        self._input.close()
        self.output.close()
        return status
