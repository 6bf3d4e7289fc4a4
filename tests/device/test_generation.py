"""Completions as on a GPU: those of a CPU, no tensor left on the host, a wait or two for each token of a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ladle.generation.request import Request
from ladle.generation.transformers_backend import TransformersGenerator
from ladle.models.load import save_model
from ladle.rollouts import rollout
from ladle.rollouts.config import GateConfig
from tests.device.pretended import PretendedGpu
from tests.tiny_models import make_model, make_tokenizer

NEW_TOKENS = 12
REQUESTS = [
    Request(str(n), [5 + n, *range(7, 7 + n)], n, NEW_TOKENS, temperature=float(n % 2), top_k=n % 3 * 20)
    for n in range(6)
]


def save(folder: Path, shape: str, seed: int = 0) -> Path:
    tokenizer = make_tokenizer()
    save_model(make_model(shape, len(tokenizer), seed=seed), tokenizer, folder)
    return folder


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("shape", ["qwen3", "deepseek_v3"])
def test_slots(shape, top_p, tmp_path):
    """Rows of several lengths, greedy and sampled, that leave and are refilled."""
    requests = [replace(request, top_p=top_p) for request in REQUESTS]

    def complete() -> dict[str, list[int] | None]:
        generator = TransformersGenerator(save(tmp_path, shape), make_tokenizer(), batch_size=4)
        assert generator.fault is None
        gpu.syncs.clear()
        return {sample.id: sample.token_ids for sample in generator.generate(requests)}

    gpu = PretendedGpu()
    on_cpu = complete()
    with gpu:
        assert complete() == on_cpu
    rounds = 2  # of requests through the slots
    a_token = 1 if top_p == 1 else 2  # to read it, and whether the nucleus is among the likeliest few hundred
    assert rounds * NEW_TOKENS <= len(gpu.syncs) <= rounds * NEW_TOKENS * a_token, gpu.report()


def test_alone(tmp_path):
    """By transformers' own `generate`, as models are completed that the slots do not fit."""

    def complete() -> dict[str, list[int] | None]:
        generator = TransformersGenerator(tmp_path, make_tokenizer())
        generator.fault = "a test"
        return {sample.id: sample.token_ids for sample in generator.generate(REQUESTS)}

    save(tmp_path, "llama")
    on_cpu = complete()
    with PretendedGpu():
        assert complete() == on_cpu


def test_a_gate(tmp_path):
    problems = [{"question": f"q{n}", "answer": str(n)} for n in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    inputs = {name: [save(tmp_path / name, "qwen3", seed)] for seed, name in enumerate(("parent", "candidate"))}
    config = GateConfig.model_validate({"prompts": {"dataset": "d", "split": "test"}, "max_new_tokens": 4})
    (tmp_path / "out").mkdir()
    with PretendedGpu() as gpu:
        result = rollout.run_gate(config, inputs | {"prompts": [tmp_path]}, tmp_path / "out")
    assert result.counters["attempts"] == 3
    assert gpu.syncs
