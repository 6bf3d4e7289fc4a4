"""Small members made of raw bytes, so that every dtype and every bit pattern can stand in one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ladle.soups.members import make_header

from .formats import to_bits

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-6, "hidden_act": "silu"}

Tensors = Mapping[str, tuple[str, np.ndarray]]
"""Name to (dtype, array whose bytes are the tensor's)."""


def write_member(
    folder: Path, tensors: Tensors, config: Mapping[str, object] | None = None, shards: Sequence[Sequence[str]] = ()
) -> Path:
    """Write a model folder: one file, or one for each group of names in `shards`, with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(config or {})))
    if not shards:
        (folder / "model.safetensors").write_bytes(pack(tensors))
        return folder
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / file).write_bytes(pack({name: tensors[name] for name in names}))
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def pack(tensors: Tensors) -> bytes:
    described = {name: (dtype, array.shape, array.nbytes) for name, (dtype, array) in tensors.items()}
    return make_header(described, {"format": "pt"}).raw + b"".join(array.tobytes() for _, array in tensors.values())


def random_tensors(seed: int, dtype: str = "BF16", rows: int = 40) -> dict[str, tuple[str, np.ndarray]]:
    """Return weights of one run: those of another seed differ from them as checkpoints do."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    shapes = {"embed.weight": (rows, 64), "layers.0.mlp.weight": (64, 33), "layers.0.norm.weight": (7,), "head": (3, 5)}
    tensors = {}
    for name, shape in shapes.items():
        values = shared.normal(0, 0.02, shape) + own.normal(0, 0.0008, shape)
        tensors[name] = (dtype, to_bits(values, dtype))
    tensors["layers.0.router_bias"] = ("F32", to_bits(shared.normal(0, 1, 8) + own.normal(0, 0.1, 8), "F32"))
    tensors["position_ids"] = ("I64", np.arange(6))
    return tensors


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
