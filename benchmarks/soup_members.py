"""Make the members of a soup: a model with random weights, and copies of it that drifted as checkpoints do.

    python benchmarks/soup_members.py SHAPE FOLDER [COUNT]

Shapes: `llama-0.45b`, and DeepSeek-V3's `deepseek-0.45b` and `openseek-1.4b` (the true shape: 6 layers of which the
first is dense, 1280 wide, 64 experts of which 6 are routed to, 2 shared, tied); `llama-tiny` and `deepseek-tiny` to try
things.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = {"model_type": "llama", "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 6,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-0.45b": LLAMA | {"vocab_size": 49152, "hidden_size": 1024, "intermediate_size": 4096},
    "llama-tiny": LLAMA | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128},
    "deepseek-0.45b": DEEPSEEK
    | {"vocab_size": 65536, "hidden_size": 1024, "intermediate_size": 4096}
    | {"moe_intermediate_size": 704, "n_routed_experts": 32},
    "deepseek-tiny": DEEPSEEK
    | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128}
    | {"moe_intermediate_size": 32, "n_routed_experts": 8},
    "openseek-1.4b": DEEPSEEK
    | {"vocab_size": 151872, "hidden_size": 1280, "intermediate_size": 7168}
    | {"moe_intermediate_size": 896, "n_routed_experts": 64},
}
DRIFT = 0.0008
"""Standard deviation of a checkpoint's distance from the first member; the weights' is 0.02."""


def make_members(shape: str, folder: Path, count: int) -> list[Path]:
    """Write `count` members of a shape and return their folders."""
    members = [folder / f"checkpoint-{number}" for number in range(count)]
    _save_first(shape, members[0])
    noise = np.random.default_rng(0).normal(0, DRIFT, 2**21).astype(np.float32)
    for number, member in enumerate(members[1:], start=1):
        _save_drifted(members[0], member, noise, np.random.default_rng(number))
    return members


def _save_first(shape: str, folder: Path) -> None:
    fields = dict(SHAPES[shape])
    config = AutoConfig.for_model(fields.pop("model_type"), tie_word_embeddings=True, **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for module in model.modules():  # the router's bias is fp32 in every bf16 model
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias = torch.randn(module.e_score_correction_bias.shape)
    model.save_pretrained(folder, max_shard_size="50GB")


def _save_drifted(first: Path, folder: Path, noise: np.ndarray, rng: np.random.Generator) -> None:
    shutil.copytree(first, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    source = np.memmap(first / "model.safetensors", np.uint8, "r")
    data_start = 8 + struct.unpack("<Q", source[:8].tobytes())[0]
    header = json.loads(source[8:data_start].tobytes())
    header.pop("__metadata__", None)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(source[:data_start].tobytes())
        for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
            start, stop = (data_start + offset for offset in entry["data_offsets"])
            for piece in range(start, stop, 2 * noise.size):
                raw = source[piece : min(piece + 2 * noise.size, stop)]
                file.write(_drifted(raw, noise, rng) if entry["dtype"] == "BF16" else raw.tobytes())


def _drifted(raw: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> bytes:
    values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    first = int(rng.integers(noise.size))
    values += np.concatenate([noise[first:], noise[:first]])[: values.size]
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


if __name__ == "__main__":
    make_members(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 8)
