"""What a training leaves beside the model: its log and its optimizer's digest, equal for equal runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ladle.artifacts.files import fsync_tree, hash_bytes, pretty_json, write_text_durably
from ladle.stage import StageResult
from ladle.training.speed import TIMED

LOG_NAME = "training_log.jsonl"
FINISHED = "finished.json"
"""Written when a training has ended and its model is saved: from then on nothing is trained again, whatever is killed
while checkpoints lose their training state and the artifact is hashed. It holds the summary, equal for equal runs."""
_TIMINGS = frozenset(
    [
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "train_tokens_per_second",
        "total_flos",
        *TIMED,
    ]
)


def write_finished(summary: StageResult, out: Path) -> None:
    """Mark a training as finished, once its model and log are on disk for good."""
    fsync_tree(out / "model")
    write_text_durably(out / FINISHED, pretty_json({"counters": summary.counters, "metrics": summary.metrics}))


def read_finished(out: Path) -> StageResult | None:
    """Return the summary of a finished training, None if it has not ended yet."""
    path = out / FINISHED
    return StageResult(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


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
