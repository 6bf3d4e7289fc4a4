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
    """Runs items as tasks of the cluster at RAY_ADDRESS, or else of the one this machine belongs to.

    Args:
        on_gpus: give each task a GPU of its own, where the cluster has any.
    """

    def __init__(self, on_gpus: bool = False) -> None:
        self.on_gpus = on_gpus

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order.

        Raises:
            UserError: Ray is not installed, or there is no cluster.
            CheckFailed: an item was lost with its node again and again.
        """
        ray = _connect()
        gpus = 1 if self.on_gpus and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES)(_call)
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
        first = str(error).splitlines()[0]
        raise CheckFailed(
            f"an item was lost with its node {MAX_RETRIES + 1} times ({first}); finished shards are kept: "
            "run the same command again once the cluster is well"
        ) from error


def _connect() -> Any:
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
