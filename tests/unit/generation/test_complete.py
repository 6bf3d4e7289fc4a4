from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import pytest

from ladle.artifacts.journal import RowJournal
from ladle.executors import ProcessExecutor, Shard
from ladle.generation.complete import JOURNAL_PATTERN, complete, discard_samples
from ladle.generation.request import Request, Sample

REQUESTS = [
    Request(f"{task}/{n}/0", [1] * (1 + n % 5), seed=n, max_new_tokens=4)
    for task in ("sums", "doubles")
    for n in range(10)
]


class EchoGenerator:
    """Answers each request with its seed, and fails after some."""

    def __init__(self, worker: int, fail_after: int | None = None) -> None:
        self.worker = worker
        self.fail_after = fail_after

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        for number, request in enumerate(requests):
            if number == self.fail_after:
                raise RuntimeError("out of memory")
            yield Sample(request.id, [request.seed], f"answer {request.seed}\n", "stop")


def _expected() -> dict[str, Sample]:
    return {r.id: Sample(r.id, [r.seed], f"answer {r.seed}\n", "stop") for r in REQUESTS}


def test_samples_come_in_the_order_of_the_requests(tmp_path):
    done = complete(REQUESTS, EchoGenerator, tmp_path, ProcessExecutor(1))
    assert done.samples == _expected()
    assert list(done.samples) == [request.id for request in REQUESTS]
    assert set(done.seconds) == {"sums", "doubles"}
    assert min(done.seconds.values()) > 0


def test_several_processes_give_the_same(tmp_path):
    done = complete(REQUESTS, EchoGenerator, tmp_path, ProcessExecutor(2), workers=2)
    assert done.samples == _expected()
    assert len(list(tmp_path.glob(JOURNAL_PATTERN))) == 2


def test_a_restart_generates_only_the_rest_with_any_number_of_workers(tmp_path):
    with pytest.raises(RuntimeError):
        complete(REQUESTS, partial(EchoGenerator, fail_after=7), tmp_path, ProcessExecutor(1))
    with pytest.raises(RuntimeError):
        complete(REQUESTS, partial(EchoGenerator, fail_after=3), tmp_path, ProcessExecutor(1), workers=3)
    seen: list[int] = []

    def make(worker: int) -> EchoGenerator:
        seen.append(worker)
        return EchoGenerator(worker)

    assert complete(REQUESTS, make, tmp_path, ProcessExecutor(1), workers=2).samples == _expected()
    rows = [row for path in tmp_path.glob(JOURNAL_PATTERN) for row in RowJournal(path).rows()]
    assert sorted(row["id"] for row in rows) == sorted(request.id for request in REQUESTS)
    complete(REQUESTS, make, tmp_path, ProcessExecutor(1))
    assert seen == [0, 1]  # with nothing left to do, no model is loaded


def test_shares_of_several_machines_come_together(tmp_path):
    for index in range(3):
        share = complete(REQUESTS, EchoGenerator, tmp_path, ProcessExecutor(1), shard=Shard(index, 3))
        assert list(share.samples) == [request.id for request in REQUESTS[index::3]]

    def refuse(worker: int) -> EchoGenerator:
        raise AssertionError("there was something left to generate")

    assert complete(REQUESTS, refuse, tmp_path, ProcessExecutor(1)).samples == _expected()


def test_nothing_is_left_of_discarded_samples(tmp_path):
    complete(REQUESTS, EchoGenerator, tmp_path, ProcessExecutor(1))
    discard_samples(tmp_path)
    assert list(tmp_path.iterdir()) == []
