"""Complete requests, resuming what was finished before, in this process or in several.

Each process loads the model once and keeps a journal of its own beside the others'. A restart reads all of them,
whatever their number, and deals out only the rest; so worker counts may change between a crash and the restart, and
the samples do not.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from ladle.artifacts.journal import RowJournal
from ladle.errors import UserError
from ladle.executors import WHOLE, Executor, Shard
from ladle.generation.request import Generator, Request, Sample, SamplingConfig
from ladle.log import get_logger, progress

logger = get_logger(__name__)

JOURNAL_PATTERN = ".samples-*.jsonl"


@dataclass
class Completed:
    """Samples by their requests' ids, and by task the seconds of generating them, in all processes and attempts."""

    samples: dict[str, Sample] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)


def complete(
    requests: Sequence[Request],
    make: Callable[[int], Generator],
    folder: Path,
    executor: Executor,
    workers: int = 1,
    shard: Shard = WHOLE,
) -> Completed:
    """Return a sample for each request of the shard, in their order.

    Args:
        requests: what to complete, task by task.
        make: builds the generator of the worker whose number it is given; called only if there is something to
            generate, and picklable where the executor has several processes.
        folder: where finished samples are kept until `discard_samples`.
        executor: runs the piles.
        workers: piles that the unfinished requests are dealt into.
        shard: the share to complete, where others complete the rest into the same folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = shard.of(requests)
    finished = _read_journals(folder).samples
    # Dealt like cards from each task's longest prompt down, so that every pile takes about as long.
    place = {task: number for number, task in enumerate(dict.fromkeys(request.task for request in wanted))}
    unfinished = [request for request in wanted if request.id not in finished]
    unfinished.sort(key=lambda request: (place[request.task], -len(request.prompt_ids)))
    numbers = range(shard.index * workers, (shard.index + 1) * workers)  # each share has journals of its own
    piles = [(number, pile) for at, number in enumerate(numbers) if (pile := unfinished[at::workers])]
    for _ in executor.map(partial(_complete_pile, make, folder), piles):
        pass
    done = _read_journals(folder)
    return Completed({request.id: done.samples[request.id] for request in wanted}, done.seconds)


def discard_samples(folder: Path) -> None:
    """Remove the journals once what they hold is kept elsewhere."""
    for journal in folder.glob(JOURNAL_PATTERN):
        journal.unlink()


def positions_of(model: Path) -> int | None:
    """Return how many tokens a model takes, prompt and completion together; None where its config does not say."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError):
        return None  # loading it will say why; and a server may know it
    return getattr(config, "max_position_embeddings", None)


def make_generator(
    sampling: SamplingConfig, model: Path, tokenizer: Any, dtype: str = "float32", worker: int = 0
) -> Generator:
    """Return the generator that a run's settings name, with the model loaded.

    Args:
        sampling: the settings; `backend`, `batch_size` and `endpoint` are read here.
        model: the folder of the model.
        tokenizer: its tokenizer.
        dtype: floating-point type to run the weights in.
        worker: number of this process among those that generate side by side; each takes a GPU of its own, in turn.

    Raises:
        UserError: the backend is not installed, or lacks an endpoint.
    """
    # The libraries are imported when a backend is chosen, so that this module stays light.
    if sampling.backend == "http":
        from ladle.generation.http_backend import HttpGenerator

        if sampling.endpoint is None:
            raise UserError("sampling.backend=http has no server", "set sampling.endpoint=http://HOST:PORT/v1")
        return HttpGenerator(sampling.endpoint, tokenizer, concurrency=sampling.batch_size)
    if sampling.backend == "vllm":
        from ladle.generation.vllm_backend import VllmGenerator as LocalGenerator
    else:
        from ladle.generation.transformers_backend import TransformersGenerator as LocalGenerator
    return LocalGenerator(model, tokenizer, dtype, batch_size=sampling.batch_size, worker=worker)


def _complete_pile(make: Callable[[int], Generator], folder: Path, numbered: tuple[int, list[Request]]) -> None:
    number, pile = numbered
    # Where this is a second try, the first one's process may be unreachable and still alive: it keeps its own journal.
    journal = RowJournal(folder / JOURNAL_PATTERN.replace("*", f"{number}-{socket.gethostname()}-{os.getpid()}"))
    finished = _read_journals(folder).samples
    logger.info("%d samples to make: loading the model", len(pile))
    generator = make(number)
    with journal.appending() as append:
        for task, group in groupby(pile, key=lambda request: request.task):
            requests = [request for request in group if request.id not in finished]
            before = time.monotonic()
            # Counted in tokens: the first samples to finish are the shortest, and say little of the rest.
            with progress(sum(request.max_new_tokens for request in requests), task, "tokens") as bar:
                generator.report = bar.advance
                for count, sample in enumerate(generator.generate(requests), start=1):
                    now = time.monotonic()
                    append(asdict(sample) | {"seconds": now - before})
                    before = now
                    bar.say(f"{count:,}/{len(requests):,} samples")


def _read_journals(folder: Path) -> Completed:
    done = Completed()
    for path in sorted(folder.glob(JOURNAL_PATTERN)):
        for row in RowJournal(path).rows():
            seconds = row.pop("seconds")
            done.samples[row["id"]] = Sample(**row)
            done.seconds[row["id"].partition("/")[0]] += seconds
    return done
