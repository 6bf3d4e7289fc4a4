from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ladle.executors import ProcessExecutor, SerialExecutor
from ladle.generation.complete import LOG_PATTERN, complete, discard_logs
from ladle.generation.request import Request, Sample
from ladle.generation.sample_log import SampleLog, read_log

REQUESTS = [Request(str(n), [1] * (1 + n % 5), seed=n, max_new_tokens=4) for n in range(20)]


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
    done = complete(REQUESTS, EchoGenerator, tmp_path, SerialExecutor())
    assert done.samples == _expected()
    assert list(done.samples) == [request.id for request in REQUESTS]
    assert done.seconds > 0


def test_several_processes_give_the_same(tmp_path):
    done = complete(REQUESTS, EchoGenerator, tmp_path, ProcessExecutor(2), workers=2)
    assert done.samples == _expected()
    assert len(list(tmp_path.glob(LOG_PATTERN))) == 2


def test_a_restart_generates_only_the_rest_with_any_number_of_workers(tmp_path):
    with pytest.raises(RuntimeError):
        complete(REQUESTS, partial(EchoGenerator, fail_after=7), tmp_path, SerialExecutor())
    with pytest.raises(RuntimeError):
        complete(REQUESTS, partial(EchoGenerator, fail_after=3), tmp_path, SerialExecutor(), workers=3)
    seen: list[int] = []

    def make(worker: int) -> EchoGenerator:
        seen.append(worker)
        return EchoGenerator(worker)

    assert complete(REQUESTS, make, tmp_path, SerialExecutor(), workers=2).samples == _expected()
    lines = [json.loads(line) for path in tmp_path.glob(LOG_PATTERN) for line in path.read_text("utf-8").splitlines()]
    assert sorted(line["id"] for line in lines if "id" in line) == sorted(request.id for request in REQUESTS)
    complete(REQUESTS, make, tmp_path, SerialExecutor())
    assert seen == [0, 1]  # with nothing left to do, no model is loaded


def test_logs_are_removed(tmp_path):
    complete(REQUESTS, EchoGenerator, tmp_path, SerialExecutor())
    discard_logs(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", range(1, 60, 7))
def test_a_torn_line_is_dropped_and_overwritten(tmp_path: Path, keep: int):
    path = tmp_path / "log.jsonl"
    with SampleLog(path) as log:
        log.append(Sample("a", [1], "ä\u2028\n", "stop"))
        log.append(Sample("b", [2], "x", "length"))
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    path.write_bytes(whole[: second + keep])
    assert set(read_log(path)[0]) == {"a"}
    with SampleLog(path) as log:
        log.append(Sample("b", [2], "x", "length"))
    samples, seconds = read_log(path)
    assert samples == {"a": Sample("a", [1], "ä\u2028\n", "stop"), "b": Sample("b", [2], "x", "length")}
    assert seconds >= 0


def test_reading_no_log(tmp_path):
    assert read_log(tmp_path / "none.jsonl") == ({}, 0.0)
