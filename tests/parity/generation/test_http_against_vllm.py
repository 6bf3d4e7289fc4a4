"""The HTTP backend against vLLM's own server, in an environment of its own (`make setup-vllm`)."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ladle.generation.http_backend import HttpGenerator
from ladle.generation.request import Request
from ladle.generation.transformers_backend import TransformersGenerator
from ladle.models.load import save_model

pytestmark = pytest.mark.slow
START_SECONDS = 400


@pytest.fixture(scope="module")
def endpoint(vllm_python, trained, tokenizer, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    save_model(trained("qwen3_for_vllm"), tokenizer, folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [
        *(
            vllm_python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(folder),
            "--served-model-name",
            "tiny",
        ),
        *(
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--dtype",
            "float32",
            "--enforce-eager",
            "--max-model-len",
            "512",
        ),
        *("--compilation-config", '{"custom_ops": ["none"]}'),
    ]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(arguments, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(port, server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


def _wait_until_ready(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
        else:
            return
    pytest.fail(f"the server did not start in {START_SECONDS} s:\n{log.read_text()[-3000:]}")


def test_greedy_and_stopped_samples_are_those_of_the_transformers_loop(endpoint, trained, tokenizer, prompts):
    requests = [
        Request(str(n), ids, n, 40, temperature=0, stop=(" The",) if n % 3 == 0 else ())
        for n, ids in enumerate(prompts[:120])
    ]
    ours = {s.id: asdict(s) for s in TransformersGenerator(trained("qwen3_for_vllm"), tokenizer).generate(requests)}
    theirs = {s.id: asdict(s) for s in HttpGenerator(endpoint, tokenizer, concurrency=16).generate(requests)}
    differing = [name for name in ours if ours[name] != theirs[name]]
    # As for the backend in process: rounding may turn one item in 200.
    assert len(differing) <= 0.005 * len(ours), [(ours[name], theirs[name]) for name in differing[:3]]


def test_seeds_decide_the_samples(endpoint, tokenizer):
    start = tokenizer.encode("Question:")
    requests = [Request(str(n), start, n // 2, 24, temperature=1.0) for n in range(40)]
    samples = {sample.id: sample for sample in HttpGenerator(endpoint, tokenizer).generate(requests)}
    assert len({sample.text for sample in samples.values()}) > 10
    same = sum(samples[str(2 * n)].text == samples[str(2 * n + 1)].text for n in range(20))
    assert same >= 19
