"""Workers on a Ray cluster that hold what items need, such as a model in vLLM: actors, one a GPU where there are any.

An item that was lost with its actor goes back to the head of the queue, for whichever actor is free first. Another
actor is asked for in the lost one's place, and joins in once the cluster has room for it: nobody waits for it. Ray's
own restarts would wait, for a GPU that the other actors hold until the work is done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ladle.executors.ray_cluster import MAX_RETRIES, connect, lost_too_often


class RayActors:
    """Runs items on actors of the cluster, each with a GPU of its own where the cluster has any, else with a CPU.

    Args:
        workers: the most actors.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        """Yield `function(argument)` for each argument, in order.

        Raises:
            UserError: Ray is not installed, or there is no cluster.
            CheckFailed: an item, or an actor before its first item, was lost again and again.
        """
        items = list(arguments)
        if items:
            crew = _Crew(connect(), function, items)
            try:
                crew.hire(min(self.workers, len(items)))
                yield from crew.results()
            finally:
                crew.dismiss()


class _Crew:
    """The actors of one piece of work, and which of them does what."""

    def __init__(self, ray: Any, function: Callable[[Any], Any], items: list[Any]) -> None:
        self.ray = ray
        self.gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self.function = ray.put(function)
        self.items = items
        self.waiting = deque(range(len(items)))
        self.idle: list[Any] = []
        self.joining: dict[Any, Any] = {}
        """Actor by its word that it has started."""
        self.working: dict[Any, tuple[Any, int]] = {}
        """Actor and the position of its item, by the result to come."""
        self.finished: dict[int, Any] = {}
        self.losses: Counter[int | None] = Counter()
        """Times that each item was lost; None stands for an actor that had none yet."""

    def hire(self, most: int) -> None:
        """Ask for `most` actors, or one a GPU (without GPUs: one a CPU) if those are fewer."""
        room = int(self.ray.cluster_resources().get("GPU" if self.gpus else "CPU", 1))
        for _ in range(min(most, max(1, room))):
            self._hire_one()

    def results(self) -> Iterator[Any]:
        """Yield the result of each item, in order."""
        for position in range(len(self.items)):
            while position not in self.finished:
                self._hand_out()
                self._hear_from_one()
            yield self.finished.pop(position)

    def dismiss(self) -> None:
        """End all actors, whatever they are doing."""
        for actor in [*self.idle, *self.joining.values(), *(actor for actor, _ in self.working.values())]:
            self.ray.kill(actor)

    def _hire_one(self) -> None:
        actor = self.ray.remote(num_cpus=1, num_gpus=self.gpus)(_Worker).remote()
        self.joining[actor.greet.remote()] = actor

    def _hand_out(self) -> None:
        while self.idle and self.waiting:
            actor, position = self.idle.pop(), self.waiting.popleft()
            self.working[actor.call.remote(self.function, self.items[position])] = actor, position

    def _hear_from_one(self) -> None:
        (answer,), _ = self.ray.wait([*self.working, *self.joining], num_returns=1)
        actor, position = self.working.pop(answer) if answer in self.working else (self.joining.pop(answer), None)
        exceptions = self.ray.exceptions
        try:
            result = self.ray.get(answer)
        except exceptions.RayTaskError as error:
            self.idle.append(actor)
            raise error.cause from error
        except (exceptions.RayActorError, exceptions.RaySystemError, exceptions.ObjectLostError) as error:
            self._replace(actor, position, error)
            return
        self.idle.append(actor)
        if position is not None:
            self.finished[position] = result

    def _replace(self, actor: Any, position: int | None, error: Exception) -> None:
        self.ray.kill(actor)  # it may be alive and only out of reach
        self.losses[position] += 1
        if self.losses[position] > MAX_RETRIES:
            raise lost_too_often(error) from error
        if position is not None:
            self.waiting.appendleft(position)
        self._hire_one()


class _Worker:
    """What runs in an actor's process."""

    def greet(self) -> None:
        """Answer once the process runs."""

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Return `function(argument)`."""
        return function(argument)
