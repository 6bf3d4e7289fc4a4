"""Workers on a Ray cluster (extra `ray`): actors, which hold what items need, such as a tokenizer or a model in vLLM.

An item that was lost with its actor goes back to the head of the queue, for whichever actor is free first, and nobody
waits for the actor that replaces the lost one. Ray's own restarts would wait, for a GPU that the other actors hold
until the work is done. The nodes share the file system that holds the run, since shards pass through files. Training
stays with torchrun, whose processes must all be there at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ladle.errors import CheckFailed, UserError
from ladle.executors import WORKER_ENVIRONMENT

MAX_RETRIES = 5
"""Times that an item is worked again after its node or process was lost; an error of its own is never retried."""


class RayExecutor:
    """Runs items on actors of the cluster at RAY_ADDRESS, or else of the one this machine belongs to.

    Args:
        max_actors: the most actors; None means one per CPU.
        on_gpus: give each actor a GPU of its own where the cluster has any.
    """

    def __init__(self, max_actors: int | None, on_gpus: bool) -> None:
        self.max_actors, self.on_gpus = max_actors, on_gpus

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order.

        Raises:
            UserError: Ray is not installed, or there is no cluster.
            CheckFailed: an item, or an actor before its first item, was lost again and again.
        """
        items = list(arguments)
        if items:
            crew = _Crew(_connect(), function, items, self.max_actors or len(items), self.on_gpus)
            try:
                yield from crew.results()
            finally:
                crew.dismiss()


class _Crew:
    """The actors of one piece of work, and which of them does what."""

    def __init__(
        self, ray: Any, function: Callable[[Any], Any], items: list[Any], max_actors: int, on_gpus: bool
    ) -> None:
        self.ray = ray
        self.gpus = 1 if on_gpus and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self.max_actors = min(max_actors, len(items))
        self.function = ray.put(function)
        self.items = items
        self.waiting = deque(range(len(items)))
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, int | None]] = {}
        """Actor and the position of its item, by the answer to come; None is an actor that starts."""
        self.finished: dict[int, Any] = {}
        self.losses: Counter[int | None] = Counter()
        """Times that each item was lost; None counts the actors that were lost as they started."""

    def results(self) -> Iterator[Any]:
        """Yield the result of each item, in order."""
        for position in range(len(self.items)):
            while position not in self.finished:
                self._hire()
                while self.idle and self.waiting:
                    actor, next_one = self.idle.pop(), self.waiting.popleft()
                    self.busy[actor.call.remote(self.function, self.items[next_one])] = actor, next_one
                self._hear_from_one()
            yield self.finished.pop(position)

    def dismiss(self) -> None:
        """End all actors, whatever they are doing."""
        for actor in [*self.idle, *(actor for actor, _ in self.busy.values())]:
            self.ray.kill(actor)

    def _hire(self) -> None:
        """Request an actor per GPU (without GPUs: per CPU) of the cluster as it is now: lost ones, and on new nodes."""
        room = int(self.ray.cluster_resources().get("GPU" if self.gpus else "CPU", 1))
        for _ in range(min(self.max_actors, max(1, room)) - len(self.idle) - len(self.busy)):
            actor = self.ray.remote(num_cpus=1, num_gpus=self.gpus)(_Worker).remote()
            self.busy[actor.greet.remote()] = actor, None

    def _hear_from_one(self) -> None:
        (answer,), _ = self.ray.wait([*self.busy], num_returns=1)
        actor, position = self.busy.pop(answer)
        exceptions = self.ray.exceptions
        try:
            result = self.ray.get(answer)
        except exceptions.RayTaskError as error:
            self.idle.append(actor)
            raise error.cause from error
        except (exceptions.RayActorError, exceptions.RaySystemError, exceptions.ObjectLostError) as error:
            self.ray.kill(actor)  # it may be alive and only out of reach
            self.losses[position] += 1
            if self.losses[position] > MAX_RETRIES:
                raise CheckFailed(
                    f"an item was lost with its node {MAX_RETRIES + 1} times ({str(error).splitlines()[0]}); finished "
                    "shards are kept: run the same command again once the cluster is well"
                ) from error
            if position is not None:
                self.waiting.appendleft(position)
            return
        self.idle.append(actor)
        if position is not None:
            self.finished[position] = result


class _Worker:
    """What runs in an actor's process."""

    def greet(self) -> None:
        """Answer once the process runs."""

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Return `function(argument)`."""
        return function(argument)


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
