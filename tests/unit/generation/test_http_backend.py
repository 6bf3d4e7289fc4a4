from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tenacity import RetryCallState, wait_none

from ladle.errors import CheckFailed, UserError
from ladle.generation.http_backend import ATTEMPTS, HttpGenerator
from ladle.generation.request import Request, Sample
from tests.tiny_models import make_tokenizer

HANG_UP = 0


class FakeServer(ThreadingHTTPServer):
    """Completes every prompt with its own ids and the end token; `faults` come first, one a request."""

    def __init__(self, eos: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.eos = eos
        self.bodies: list[dict[str, Any]] = []
        self.num_posts = 0
        self.authorization: str | None = None
        self.faults: list[int] = []
        self.served = ["tiny"]
        self.returns_ids = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": name} for name in self.server.served]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.num_posts += 1
        self.server.authorization = self.headers["Authorization"]
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == HANG_UP:
            self.close_connection = True
            return
        if fault is not None:
            self._answer(fault, {"error": "too long"})
            return
        self.server.bodies.append(body)
        choice: dict[str, Any] = {"text": f"{len(body['prompt'])} tokens", "finish_reason": "length"}
        if self.server.returns_ids:
            choice["token_ids"] = [*body["prompt"], self.server.eos]
        self._answer(200, {"choices": [choice]})

    def _answer(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def server(tokenizer, monkeypatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(HttpGenerator._post.retry, "wait", wait_none())  # pyright: ignore[reportFunctionMemberAccess]
    server = FakeServer(tokenizer.eos_token_id)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _requests(tokenizer) -> list[Request]:
    return [
        Request(
            str(n), tokenizer.encode("7 plus " + "1" * n), 2**64 - 1 - n, 9, temperature=0.5, top_p=0.9, stop=("zz",)
        )
        for n in range(1, 12)
    ]


def test_samples_are_made_of_the_returned_ids(server, tokenizer):
    requests = _requests(tokenizer)
    samples = {s.id: s for s in HttpGenerator(server.endpoint, tokenizer, concurrency=4).generate(requests)}
    assert samples == {
        r.id: Sample(r.id, [*r.prompt_ids, tokenizer.eos_token_id], tokenizer.decode(r.prompt_ids), "eos")
        for r in requests
    }


def test_what_is_sent(server, tokenizer):
    list(HttpGenerator(server.endpoint, tokenizer).generate(_requests(tokenizer)[:1]))
    body = server.bodies[0]
    assert body["model"] == "tiny"
    assert body["seed"] == (2**64 - 2) % 2**63
    assert body["stop"] == ["zz"]
    assert body["stop_token_ids"] == [tokenizer.eos_token_id]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.9, 9)
    assert "top_k" not in body  # strict servers refuse what they do not know


def test_no_ids_are_made_up_for_a_server_that_returns_none(server, tokenizer, caplog):
    server.returns_ids = False
    samples = list(HttpGenerator(server.endpoint, tokenizer).generate(_requests(tokenizer)))
    assert {sample.token_ids for sample in samples} == {None}
    assert {sample.finish_reason for sample in samples} == {"length"}
    assert samples[0].text.endswith(" tokens")
    assert caplog.text.count("returns no token ids") == 1


def test_progress_is_reported_while_a_server_works_and_when_it_is_done(server, tokenizer):
    generator = HttpGenerator(server.endpoint, tokenizer)
    counts: list[int] = []
    generator.report = counts.append
    requests = _requests(tokenizer)
    list(generator.generate(requests))
    assert sum(counts) == sum(request.max_new_tokens for request in requests)


@pytest.mark.parametrize("faults", [[], [503], [429, 500, 502, 504, 408], [HANG_UP, 503, HANG_UP]])
def test_a_server_that_fails_n_times_gets_the_request_n_plus_1_times(server, tokenizer, faults):
    server.faults = list(faults)
    (sample,) = HttpGenerator(server.endpoint, tokenizer).generate(_requests(tokenizer)[:1])
    assert sample.id == "1"
    assert server.num_posts == len(faults) + 1


def test_a_server_that_keeps_failing_is_given_up_after_six_attempts(server, tokenizer):
    server.faults = [503] * 50
    with pytest.raises(CheckFailed, match=r"failed 6 times .*503.*finished samples are kept"):
        list(HttpGenerator(server.endpoint, tokenizer).generate(_requests(tokenizer)[:1]))
    assert server.num_posts == 6


def test_waits_double():
    waits = HttpGenerator._post.retry.wait  # pyright: ignore[reportFunctionMemberAccess]
    state = RetryCallState(HttpGenerator._post.retry, None, (), {})  # pyright: ignore[reportFunctionMemberAccess]
    seconds = []
    for state.attempt_number in range(1, ATTEMPTS):
        seconds.append(waits(state))
    assert seconds == [0.5, 1, 2, 4, 8]


@pytest.mark.parametrize("code", [400, 401, 404])
def test_a_refused_request_is_not_sent_again_and_says_why(server, tokenizer, code):
    server.faults = [code]
    with pytest.raises(UserError, match=f"refuses a request.*HTTP {code}.*too long"):
        list(HttpGenerator(server.endpoint, tokenizer).generate(_requests(tokenizer)[:1]))
    assert server.num_posts == 1


def test_a_key_is_sent_where_there_is_one(server, tokenizer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    list(HttpGenerator(server.endpoint, tokenizer).generate(_requests(tokenizer)[:1]))
    assert server.authorization == "Bearer secret"


def test_no_server_and_no_model(server, tokenizer):
    with pytest.raises(UserError, match="no server answers"):
        HttpGenerator("http://127.0.0.1:9/v1", tokenizer)
    server.served = []
    with pytest.raises(UserError, match="serves no model"):
        HttpGenerator(server.endpoint, tokenizer)
