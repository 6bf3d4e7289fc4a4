"""What a training leaves beside the model: its log and its optimizer's digest, equal for equal runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ladle.artifacts.files import hash_bytes

LOG_NAME = "training_log.jsonl"
_TIMINGS = frozenset(
    [
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "train_tokens_per_second",
        "total_flos",
    ]
)


def write_log(history: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the Trainer's log history, a JSON object a line, without timings."""
    rows = ({key: value for key, value in entry.items() if key not in _TIMINGS} for entry in history)
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's tensors by parameter number and name."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value
        for index, entry in sorted(state.items())
        for name, value in sorted(entry.items())
        if isinstance(value, torch.Tensor)
    }


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the blake3 over tensors and their names, in their order."""
    return hash_bytes(json.dumps([[name, _tensor_digest(tensor)] for name, tensor in tensors.items()]).encode())


def _tensor_digest(tensor: torch.Tensor) -> str:
    return hash_bytes(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
