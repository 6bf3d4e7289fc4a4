"""Complete a set of requests, resuming what was finished before, in this process or in several.

Each process keeps its own log beside the others'. A restart reads all of them, whatever their number, and deals out
only the rest; so worker counts may change between a crash and its resumption, and the samples do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ladle.executors import WHOLE, Executor, Shard
from ladle.generation.request import Generator, Request, Sample
from ladle.generation.sample_log import SampleLog, read_log
from ladle.log import progress

LOG_PATTERN = ".samples-*.jsonl"

MakeGenerator = Callable[[int], Generator]


@dataclass(frozen=True)
class Completed:
    """Every request's sample, by its id, and the seconds of generating that they took in all processes and attempts."""

    samples: dict[str, Sample]
    seconds: float


def complete(
    requests: Sequence[Request],
    make: MakeGenerator,
    folder: Path,
    executor: Executor,
    workers: int = 1,
    description: str = "completions",
    shard: Shard = WHOLE,
) -> Completed:
    """Return a sample for every request of the shard, which is all of them unless told.

    Args:
        requests: what to complete; their ids are unique.
        make: builds the generator of the worker whose number it is given; called only if there is something to
            generate, and picklable where the executor has several processes.
        folder: where the logs are kept until `discard_logs`.
        executor: runs the piles.
        workers: piles that the unfinished requests are dealt into.
        description: what the progress line says.
        shard: the share to complete, where others complete the rest into the same folder.
    """
    requests = shard.of(requests)
    folder.mkdir(parents=True, exist_ok=True)
    finished = _read_logs(folder).samples
    unfinished = [request for request in requests if request.id not in finished]
    # Dealt like cards from the longest prompt down, so that every pile takes about as long.
    unfinished.sort(key=lambda request: -len(request.prompt_ids))
    first = shard.index * workers  # each share has logs of its own
    dealt = [(first + pile, unfinished[pile::workers]) for pile in range(workers)]
    piles = [(pile, requests) for pile, requests in dealt if requests]
    for _ in executor.map(partial(_complete_pile, make, folder, description), piles):
        pass
    done = _read_logs(folder)
    return Completed({request.id: done.samples[request.id] for request in requests}, done.seconds)


def discard_logs(folder: Path) -> None:
    """Remove the logs once what they hold stands elsewhere."""
    for log in folder.glob(LOG_PATTERN):
        log.unlink()


def _complete_pile(make: MakeGenerator, folder: Path, description: str, pile: tuple[int, list[Request]]) -> None:
    number, requests = pile
    log_path = folder / LOG_PATTERN.replace("*", str(number))
    finished, _ = read_log(log_path)  # by a worker that was lost, where this is its second try
    requests = [request for request in requests if request.id not in finished]
    generator = make(number)
    with SampleLog(log_path) as log, progress(len(requests), description, "samples") as bar:
        for sample in generator.generate(requests):
            log.append(sample)
            bar.advance(1)


def _read_logs(folder: Path) -> Completed:
    logs = [read_log(path) for path in sorted(folder.glob(LOG_PATTERN))]
    samples = {name: sample for log, _ in logs for name, sample in log.items()}
    return Completed(samples, sum(seconds for _, seconds in logs))
