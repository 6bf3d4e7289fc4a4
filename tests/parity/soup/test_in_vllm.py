"""A soup generates in vLLM what it generates in transformers: there too it is a whole model, under the wanted names."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ladle.generation.request import Request
from ladle.generation.transformers_loop import TransformersGenerator
from ladle.soup.config import SoupConfig
from ladle.stages import soup
from tests.parity.soup.test_against_transformers import save_members
from tests.tiny_models import SHAPES, make_tokenizer

# Widths that vLLM's CPU kernels are built for, and weights large enough for the best token to be far ahead.
CHANGED = {
    "deepseek_v3": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "initializer_range": 0.2},
    "qwen3": {"head_dim": 64, "initializer_range": 0.2},
}
NUM_REQUESTS = 50


@pytest.mark.slow
@pytest.mark.parametrize("shape", CHANGED)
def test_a_soup_generates_the_same_in_vllm(
    tmp_path: Path, repository: Path, vllm_python: str, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, shape, SHAPES[shape] | CHANGED[shape])
    out = tmp_path / "soup"
    out.mkdir()
    soup.run(SoupConfig(), {"members": save_members(tmp_path, shape, torch.float32, "5GB")}, out)
    tokenizer = make_tokenizer()
    prompts = [tokenizer.encode(f"Question: {number} plus {number}?") for number in range(NUM_REQUESTS)]
    requests = [Request(str(number), ids, number, 16, temperature=0) for number, ids in enumerate(prompts)]
    (tmp_path / "requests.json").write_text(json.dumps([asdict(request) for request in requests]))
    script = repository / "tests" / "parity" / "generation" / "vllm_greedy.py"
    arguments = [vllm_python, script, out, tmp_path / "requests.json", tmp_path / "samples.json"]
    environment = os.environ | {"PYTHONPATH": str(repository / "src"), "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = {sample["id"]: sample["text"] for sample in json.loads((tmp_path / "samples.json").read_text())["first"]}
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ours = {sample.id: sample.text for sample in TransformersGenerator(model, tokenizer).generate(requests)}
    assert len(set(ours.values())) > NUM_REQUESTS // 2
    # Products of another shape round otherwise; a model without its experts or its router would agree nowhere.
    assert sum(ours[name] != theirs[name] for name in ours) <= 1
