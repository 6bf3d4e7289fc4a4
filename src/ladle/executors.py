"""Where shards of work run: in this process, in a pool of processes on this machine, or on a Ray cluster.

Results come back in the order of the arguments whatever finishes first, so nothing downstream can depend on the worker
count.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ladle.errors import CheckFailed, UserError

ExecutorKind = Literal["processes", "ray"]
ItemT = TypeVar("ItemT")
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""One thread per worker: the workers are what fills the cores."""
MAX_RETRIES = 5
"""Times that an item is worked again after its Ray node was lost; an error of its own is never retried."""


@dataclass(frozen=True)
class Shard:
    """One of `count` equal shares of some work, by position: share `index` takes every `count`-th item from `index`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard written as `INDEX/COUNT`, such as `3/16`.

        Raises:
            UserError: it is not of that form, or the index is out of range.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"{text!r} is not a shard", "write INDEX/COUNT, with indices from 0: 0/16 to 15/16")
        return cls(int(index), int(count))

    def of(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """Return this share of the items."""
        return items[self.index :: self.count]


WHOLE = Shard()
"""The one share that is all of the work."""


@dataclass(frozen=True)
class ProcessExecutor:
    """Runs on `workers` spawned processes, each held to one thread, or in this process if that is one, or one item."""

    workers: int

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order."""
        arguments = list(arguments)
        if self.workers == 1 or len(arguments) <= 1:
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
            again = "run the same command again, with fewer workers if memory was short"
            if Path(getattr(sys.modules["__main__"], "__file__", None) or "").suffix == ".py":
                again += "; if it is a script, put its calls of Ladle under `if __name__ == '__main__':`"
            problem = "a worker process died (killed, or out of memory); finished shards are kept"
            raise CheckFailed(f"{problem}: {again}") from error


def make_executor(kind: ExecutorKind, workers: int, on_gpus: bool = False) -> Executor:
    """Return the executor that a recipe names.

    Args:
        kind: `processes` on this machine, or `ray`.
        workers: processes to use; 0 means one per core that this process may use. On Ray the cluster decides.
        on_gpus: each item should have a GPU of its own where there are any.
    """
    if kind == "ray":
        return RayExecutor(on_gpus)
    return ProcessExecutor(workers or len(os.sched_getaffinity(0)))


def _limit_threads() -> None:
    os.environ.update(WORKER_ENVIRONMENT)


@dataclass(frozen=True)
class RayExecutor:
    """Runs items as tasks of the Ray cluster at RAY_ADDRESS, or else of the one this machine belongs to (extra `ray`).

    A task that is lost with its node runs again on whichever is free first. The nodes share the file system that holds
    the run, since shards pass through files. Training stays with torchrun, whose processes must all be there at once.

    Attributes:
        on_gpus: give each task a GPU of its own where the cluster has any.
    """

    on_gpus: bool

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order.

        Raises:
            UserError: Ray is not installed, or there is no cluster.
            CheckFailed: an item was lost again and again.
        """
        items = list(arguments)
        if not items:
            return
        ray = _connect()
        gpus = 1 if self.on_gpus and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        task, shared = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES)(_call), ray.put(function)
        waiting = deque(task.remote(shared, item) for item in items)
        try:
            while waiting:
                yield ray.get(waiting.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise CheckFailed(
                f"an item was lost with its node {MAX_RETRIES + 1} times ({str(error).splitlines()[0]}); finished "
                "shards are kept: run the same command again once the cluster is well"
            ) from error
        finally:
            for answer in waiting:  # where one failed; cancelling a task as it ends can make Ray 2.60 end this process
                ray.cancel(answer, force=True)


def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)


Executor = ProcessExecutor | RayExecutor
"""Maps a function over arguments, both picklable; the results come in order, and the first exception propagates."""


def _connect() -> Any:
    """Return Ray's module, connected to the cluster.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("executor=ray needs Ray, which is not installed", "pip install 'ladle[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto", runtime_env={"env_vars": WORKER_ENVIRONMENT}, log_to_driver=False)
        except ConnectionError as error:
            raise UserError(
                "there is no Ray cluster here",
                "start one with `ray start --head` (and `ray start --address=HEAD:6379` on the other nodes), "
                "set RAY_ADDRESS, or use executor=processes",
            ) from error
    return ray
