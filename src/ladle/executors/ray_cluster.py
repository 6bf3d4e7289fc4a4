"""Shards of work on a Ray cluster (extra `ray`): one task an item, again elsewhere where a node was lost.

The nodes share the file system that holds the run, since shards pass through files. Training is not run here: it
stays with torchrun, whose processes must all be there at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ladle.errors import CheckFailed, UserError
from ladle.executors import WORKER_ENVIRONMENT

MAX_RETRIES = 5
"""Times that an item is worked again after its node or process was lost; an error of its own is never retried."""


class RayExecutor:
    """Runs items as tasks of the cluster at RAY_ADDRESS, or else of the one this machine belongs to."""

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order.

        Raises:
            UserError: Ray is not installed, or there is no cluster.
            CheckFailed: an item was lost with its node again and again.
        """
        ray = connect()
        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_call)
        shared = ray.put(function)
        tasks = deque(remote.remote(shared, argument) for argument in arguments)
        try:
            while tasks:
                yield _result(ray, tasks[0])
                tasks.popleft()
        finally:
            for task in tasks:  # those that nobody waits for any more
                ray.cancel(task)


def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)


def _result(ray: Any, task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.RaySystemError, ray.exceptions.ObjectLostError) as error:
        raise lost_too_often(error) from error


def lost_too_often(error: Exception) -> CheckFailed:
    """Return the error that gives an item up, with the first line of what Ray said last."""
    first = str(error).splitlines()[0]
    return CheckFailed(
        f"an item was lost with its node {MAX_RETRIES + 1} times ({first}); finished shards are kept: "
        "run the same command again once the cluster is well"
    )


def connect() -> Any:
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
