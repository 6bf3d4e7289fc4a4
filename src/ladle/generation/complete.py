"""Complete sets of requests, resuming what was finished before, in this process or in several.

Each process loads the model once for all sets, and keeps logs of its own beside the others'. A restart reads all of
them, whatever their number, and deals out only the rest; so worker counts may change between a crash and its
resumption, and the samples do not.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class _Share:
    """A pile's part of one set."""

    name: str
    folder: Path
    requests: list[Request]


def complete(
    requests: Sequence[Request],
    make: MakeGenerator,
    folder: Path,
    executor: Executor,
    workers: int = 1,
    description: str = "completions",
    shard: Shard = WHOLE,
) -> Completed:
    """Return a sample for every request of the shard, which is all of them unless told: `complete_sets` of one set.

    Args:
        requests: what to complete; their ids are unique.
        make: as of `complete_sets`.
        folder: where the logs are kept until `discard_logs`.
        executor: runs the piles.
        workers: piles that the unfinished requests are dealt into.
        description: what the progress line says.
        shard: the share to complete, where others complete the rest into the same folder.
    """
    return complete_sets({description: requests}, make, {description: folder}, executor, workers, shard)[description]


def complete_sets(
    sets: Mapping[str, Sequence[Request]],
    make: MakeGenerator,
    folders: Mapping[str, Path],
    executor: Executor,
    workers: int = 1,
    shard: Shard = WHOLE,
) -> dict[str, Completed]:
    """Return a sample for every request of the shard of each set, by the sets' names.

    Args:
        sets: what to complete; the ids of a set are unique. The name is what the progress line says.
        make: builds the generator of the worker whose number it is given; called only if there is something to
            generate, and picklable where the executor has several processes.
        folders: where each set's logs are kept until `discard_logs`.
        executor: runs the piles.
        workers: piles that the unfinished requests are dealt into.
        shard: the share to complete, where others complete the rest into the same folders.
    """
    wanted = {name: shard.of(requests) for name, requests in sets.items()}
    dealt = {name: _deal(requests, folders[name], workers) for name, requests in wanted.items()}
    first = shard.index * workers  # each share has logs of its own
    piles = []
    for pile in range(workers):
        shares = [_Share(name, folders[name], hands[pile]) for name, hands in dealt.items() if hands[pile]]
        if shares:
            piles.append((first + pile, shares))
    for _ in executor.map(partial(_complete_pile, make), piles):
        pass
    return {name: _collect(requests, folders[name]) for name, requests in wanted.items()}


def discard_logs(folder: Path) -> None:
    """Remove the logs once what they hold stands elsewhere."""
    for log in folder.glob(LOG_PATTERN):
        log.unlink()


def _deal(requests: Sequence[Request], folder: Path, workers: int) -> list[list[Request]]:
    """Deal what is unfinished like cards from the longest prompt down, so that every pile takes about as long."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = _read_logs(folder, LOG_PATTERN).samples
    unfinished = [request for request in requests if request.id not in finished]
    unfinished.sort(key=lambda request: -len(request.prompt_ids))
    return [unfinished[pile::workers] for pile in range(workers)]


def _collect(requests: Sequence[Request], folder: Path) -> Completed:
    done = _read_logs(folder, LOG_PATTERN)
    return Completed({request.id: done.samples[request.id] for request in requests}, done.seconds)


def _complete_pile(make: MakeGenerator, pile: tuple[int, list[_Share]]) -> None:
    number, shares = pile
    generator = make(number)
    for share in shares:
        _complete_share(generator, number, share)


def _complete_share(generator: Generator, number: int, share: _Share) -> None:
    # Where this is a second try, the first one's process may be unreachable and still alive: it keeps its own log.
    own = f"{number}-{socket.gethostname()}-{os.getpid()}"
    finished = _read_logs(share.folder, LOG_PATTERN.replace("*", f"{number}-*")).samples
    requests = [request for request in share.requests if request.id not in finished]
    with (
        SampleLog(share.folder / LOG_PATTERN.replace("*", own)) as log,
        progress(len(requests), share.name, "samples") as bar,
    ):
        for sample in generator.generate(requests):
            log.append(sample)
            bar.advance(1)


def _read_logs(folder: Path, pattern: str) -> Completed:
    logs = [read_log(path) for path in sorted(folder.glob(pattern))]
    samples = {name: sample for log, _ in logs for name, sample in log.items()}
    return Completed(samples, sum(seconds for _, seconds in logs))
