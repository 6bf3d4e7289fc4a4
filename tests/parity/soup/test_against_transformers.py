"""Soups of real architectures load with nothing missing or unexpected, and are the float64 mean, rounded once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ladle.errors import UserError
from ladle.soups.compare import open_soup
from ladle.soups.config import SoupConfig
from ladle.soups.members import open_members
from ladle.stages import soup
from tests.tiny_models import make_model, make_tokenizer

NUM_MEMBERS = 7
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def save_members(folder: Path, shape: str, dtype: torch.dtype, max_shard_size: str) -> list[Path]:
    """Save a model and drifted copies of it, as checkpoints of one run."""
    model = make_model(shape).to(dtype)
    gates = [module for module in model.modules() if hasattr(module, "e_score_correction_bias")]
    tokenizer = make_tokenizer()
    members = []
    for number in range(NUM_MEMBERS):
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.001 * torch.randn_like(parameter)
            for gate in gates:
                gate.e_score_correction_bias = torch.randn(gate.e_score_correction_bias.shape)
        members.append(folder / f"checkpoint-{number}")
        model.save_pretrained(members[-1], max_shard_size=max_shard_size)
        tokenizer.save_pretrained(members[-1])
    return members


def load(folder: Path, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    return model.state_dict(), report


@pytest.mark.parametrize("max_shard_size", ["5GB", "60KB"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", ["deepseek_v3", "llama", "qwen3"])
def test_a_soup_loads_whole_and_is_the_mean(tmp_path: Path, shape: str, dtype: str, max_shard_size: str) -> None:
    members = save_members(tmp_path, shape, DTYPES[dtype], max_shard_size)
    out = tmp_path / "out"
    out.mkdir()
    summary = soup.run(SoupConfig(), {"members": members}, out)
    result, report = load(out, DTYPES[dtype])
    assert {key: sorted(value) for key, value in report.items() if value} == {}
    assert sorted(path.name for path in out.glob("*.safetensors")) == sorted(
        path.name for path in members[0].glob("*.safetensors")
    )
    states = [load(member, DTYPES[dtype])[0] for member in members]
    for name, tensor in result.items():
        # Seven terms of 24 bits: a float64 sum is exact unless they span 26 binary orders, which drift does not.
        mean = sum(state[name].double() for state in states) / NUM_MEMBERS
        assert tensor.dtype == states[0][name].dtype
        assert torch.equal(tensor.double(), _round_once(mean, tensor.dtype)), name
    assert summary.counters["tensors_averaged"] == len(open_members(members)[0].files)
    assert AutoTokenizer.from_pretrained(out)("Question: 1 plus 2?") == make_tokenizer()("Question: 1 plus 2?")


def _round_once(mean: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 to nearest even by the candidates' distances; torch rounds to bf16 by way of float32."""
    guess = mean.to(dtype)
    bits = guess.view({torch.bfloat16: torch.int16, torch.float32: torch.int32}[dtype])
    candidates = torch.stack([(bits + step).view(dtype).double() for step in (0, -1, 1)])
    distance = (candidates - mean).abs()
    distance[~torch.isfinite(distance)] = torch.inf
    is_odd = torch.stack([(bits + step) & 1 for step in (0, -1, 1)]).double()
    smallest = distance.amin(0)
    choice = torch.where(distance == smallest, is_odd, torch.inf).argmin(0)
    return candidates.gather(0, choice[None])[0]


@pytest.mark.slow
def test_configs_of_two_transformers_generations_are_compared_by_meaning(tmp_path: Path) -> None:
    """A base from the Hub names rope_theta and leaves out what is default; a checkpoint of it spells everything out."""
    new = save_members(tmp_path, "llama", torch.float32, "5GB")[0]
    old = tmp_path / "base"
    shutil.copytree(new, old)
    config = json.loads((old / "config.json").read_text())
    written = {"rope_theta": 10000.0, "torch_dtype": "float32", "transformers_version": "4.30.0"}
    kept = ("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    kept += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "hidden_act")
    (old / "config.json").write_text(json.dumps(written | {key: config[key] for key in kept}))
    assert open_soup([old, new], SoupConfig()).waived == {}
    (old / "config.json").write_text(json.dumps(written | {key: config[key] for key in kept} | {"rope_theta": 5e5}))
    with pytest.raises(UserError, match="rope_parameters is .*500000"):
        open_soup([old, new], SoupConfig())
