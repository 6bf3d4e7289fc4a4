"""Stages that the Ray tests run twice: on this machine, and on a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ladle.artifacts.record import describe_files
from ladle.data.config import MixConfig
from ladle.evaluation.config import EvaluateModelConfig
from ladle.rollouts.config import RolloutConfig
from ladle.stages import evaluate, mix, rollout
from tests.tiny_models import make_model, make_tokenizer

Job = tuple[Callable[[], Any], Path]
WORKERS = 8
PROBLEMS, SAMPLES = 24, 4
BENCHMARKS = ("sums", "doubles")
TIMED = ("_metrics.json", "final_result.json")
"""Files of an evaluation that hold how long it took."""


def prepare(folder: Path) -> Path:
    """Write a model and documents, once."""
    place = folder / "inputs"
    if not place.is_dir():
        make_model("llama").save_pretrained(place / "model")
        make_tokenizer().save_pretrained(place / "model")
        rows = [{"text": f"Question: {a} plus {b}? " * 30} for a in range(80) for b in range(80)]
        (place / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        problems = [{"question": f"{a} plus {a}?", "answer": str(2 * a)} for a in range(PROBLEMS)]
        (place / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return place


def mix_job(folder: Path, executor: str) -> Job:
    """Return a mixture of about 60 shards."""
    place, out = prepare(folder), folder / f"mix-{executor}"
    source = {"name": "text", "dataset": "text.jsonl", "ratio": 1.0, "max_epochs": 100}
    config = MixConfig.model_validate(
        {
            "sources": [source],
            "budget": {"sequences": 500},
            "sequence_length": 128,
            "shard_size_bytes": 2**16,
            "workers": 1,
            "executor": executor,
        }
    )
    inputs = {"tokenizer": [place / "model"], "source:text": [place / "text.jsonl"]}
    return (lambda: mix.run(config, inputs, out)), out


def rollout_job(folder: Path, executor: str) -> Job:
    """Return rollouts in eight piles."""
    place, out = prepare(folder), folder / f"rollout-{executor}"
    config = RolloutConfig.model_validate(
        {
            "prompts": {"dataset": "problems.jsonl"},
            "samples": SAMPLES,
            "max_new_tokens": 96,
            "batch_size": 2,
            "workers": WORKERS if executor == "ray" else 1,
            "executor": executor,
        }
    )
    inputs = {"model": [place / "model"], "prompts": [place / "problems.jsonl"]}
    return (lambda: rollout.run(config, inputs, out)), out


def evaluate_job(folder: Path, executor: str) -> Job:
    """Return an evaluation on two benchmarks in eight piles."""
    place, out = prepare(folder), folder / f"evaluate-{executor}"
    config = EvaluateModelConfig.model_validate(
        {
            "benchmarks": [{"name": name, "dataset": "problems.jsonl"} for name in BENCHMARKS],
            "prompt": "cot",
            "sampling": {"samples": SAMPLES // 2, "max_new_tokens": 96, "batch_size": 2},
            "workers": WORKERS if executor == "ray" else 1,
            "executor": executor,
        }
    )
    inputs = {f"benchmark:{name}": [place / "problems.jsonl"] for name in BENCHMARKS} | {"model": [place / "model"]}
    return (lambda: evaluate.run(config, inputs, out)), out


JOBS: dict[str, Callable[[Path, str], Job]] = {"mix": mix_job, "rollout": rollout_job, "evaluate": evaluate_job}


def finished(name: str, out: Path) -> int:
    """Return how many shards or samples are finished on disk."""
    if name == "mix":
        return len(list(out.glob("journal/*.b3")))
    return sum(path.read_text().count('"id"') for path in out.rglob(".samples-*.jsonl"))


def items(name: str) -> int:
    """Return how many there are in all, at least."""
    return 20 if name == "mix" else PROBLEMS * SAMPLES


def digests(out: Path) -> dict[str, str]:
    """Return the blake3 of every file of the result that does not hold times."""
    return {path: entry["blake3"] for path, entry in describe_files(out).items() if not path.endswith(TIMED)}
