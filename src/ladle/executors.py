"""Where shards of work run: in this process, or in a pool of processes on this machine.

Results come back in the order of the arguments whatever finishes first, so nothing downstream can depend on the worker
count.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from ladle.errors import CheckFailed, UserError


class Executor(Protocol):
    """Maps a picklable function over picklable arguments."""

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order; the first exception propagates."""
        ...


class SerialExecutor:
    """Runs everything in the calling process."""

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order."""
        return map(function, arguments)


class ProcessExecutor:
    """Runs on `workers` spawned processes; threads of numeric libraries inside a worker are held to one."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order."""
        arguments = list(arguments)
        if len(arguments) <= 1:
            yield from map(function, arguments)
            return
        pool = ProcessPoolExecutor(
            max_workers=min(self.workers, len(arguments)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_limit_threads,
        )
        try:
            with pool:
                yield from pool.map(function, arguments)
        except BrokenProcessPool as error:
            raise CheckFailed(
                "a worker process died (killed, or out of memory); finished shards are kept: "
                "run the same command again, with fewer workers if memory was short"
            ) from error


def make_executor(kind: str, workers: int) -> Executor:
    """Return the executor that a recipe names.

    Args:
        kind: `processes`.
        workers: processes to use; 0 means one for each core this process may use.
    """
    if kind != "processes":
        raise UserError(f"unknown executor {kind!r}", "use executor=processes")
    workers = workers or len(os.sched_getaffinity(0))
    return SerialExecutor() if workers == 1 else ProcessExecutor(workers)


def _limit_threads() -> None:
    for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
