"""The artifacts of a run as the report reads them, with every section, made by hand; names and texts are hostile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Records = dict[str, tuple[Path, dict[str, Any]]]

QUESTION = r"What is $\frac{1}{2}$ of \(x < 4\)? It costs $5, or $6."
ENVIRONMENT = {
    "python": "3.12",
    "cpu": "Some CPU",
    "cores": 2,
    "gpus": [],
    "commit": "c0ffee",
    "packages": {"torch": "2"},
}


def record(name: str, stage: str, made_from: Sequence[str] = (), **values: Any) -> dict[str, Any]:
    """Return a record; steps are known by their names in place of fingerprints."""
    default = {
        "name": name,
        "stage": stage,
        "fingerprint": name,
        "digest": "1" * 64,
        "environment": ENVIRONMENT,
        "timings": {"seconds": 1.5},
        "files": {},
        "counters": {},
        "config": {},
        "metrics": {},
        "warnings": [],
        "command": [".venv/bin/ladle", "run", "a recipe.yaml"],
        "inputs": {"model": [{"fingerprint": one} for one in made_from]},
    }
    return default | values


def make_run(folder: Path) -> Records:
    """Write the files of a run from a base model to an aligned one, and return its records."""
    base, kto = "base", "kto <b>"
    records: Records = {
        "base/init": (folder, record("base/init", "fetch")),
        "mix": (_mixture(folder / "mix"), record("mix", "mix", ["base/init"])),
        base: _training(folder / "base", base, "pretrain", ["base/init", "mix"], 40, {"loss": 2.0, "grad_norm": 1.0}),
        "soup": (_soup(folder / "soup"), record("soup", "soup", [base])),
        "rollout": (folder, record("rollout", "rollout", ["soup"], counters=_attempts())),
        "prefer": (folder, record("prefer", "prefer", ["rollout"], counters=_labels())),
    }
    kto_log = {"loss": 0.5, "rewards/chosen": 0.1, "rewards/rejected": -0.2, "rewards/margins": 0.3, "z0": 0.0}
    for number, steps in ((1, 4), (2, 2)):
        name = f"kto/training-{number}"
        records[name] = _training(
            folder / f"kto-{number}", name, "kto", ["soup", "prefer"], steps, kto_log | {"kl": 0.1}
        )
    records[kto] = (_gate(folder / "gate"), record(kto, "gate", ["soup", "kto/training-2"]))
    for model, right in ((base, 4), ("soup", 20), (kto, 30)):
        records[f"evaluate/{model}"] = _evaluated(folder / f"evaluate-{model[0]}", model, right)
    return records


def _mixture(folder: Path) -> Path:
    source = {
        "name": "web",
        "ratio": 0.8,
        "train_tokens": 1234,
        "train_documents": 3,
        "epochs": 1.5,
        "dropped_rows": {},
    }
    source |= {"dropped_tokens": {"unused": 77}, "length_histogram": {"64-127": 3, "128-255": 1}}
    splits = {"train": {"rows": 2, "tokens": 1234, "padding_share": 0.001}}
    return _write(folder, "mixture.json", json.dumps({"sources": [source], "splits": splits}))


def _training(folder: Path, name: str, stage: str, made_from: list[str], steps: int, log: dict[str, float]) -> Any:
    entries = [log | {"step": step, "learning_rate": 1e-3} for step in range(1, steps + 1)]
    lines = [*entries, {"step": steps, "train_loss": 1.0}]
    _write(folder, "training_log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    counters = {"steps": steps, "processes": 1} | ({"tokens": 5000} if stage == "pretrain" else _labels())
    metrics = {"first_loss": 3.0, "last_loss": 2.0} if stage == "pretrain" else log
    timings = {"seconds": 100.0, "seconds_per_step": 0.5}
    warnings = ["z0 & <KL>"] if stage == "kto" else []
    made = record(name, stage, made_from, counters=counters, metrics=metrics, timings=timings, warnings=warnings)
    return folder, made


def _soup(folder: Path) -> Path:
    coefficients = {"base": "1/2", "checkpoint-9": "0", "checkpoint-10": "1/2"}
    members = [{"name": name, "coefficient": coefficient} for name, coefficient in coefficients.items()]
    chosen = {"chosen": "uniform", "candidates": [{"name": "last", "loss": 1.5}, {"name": "uniform", "loss": 1.25}]}
    return _write(folder, "merge_info.json", json.dumps({"method": "uniform", "members": members, "selection": chosen}))


def _attempts() -> dict[str, int]:
    return {"samples": 90, "correct": 40, "wrong": 41, "unparsed": 7, "timeout": 2, "cut": 3, "rows": 81}


def _labels() -> dict[str, int]:
    return {"desirable": 12, "undesirable": 13}


def _gate(folder: Path) -> Path:
    verdict = {"kept": "parent", "accuracy": {"parent": 0.5, "candidate": 0.4}, "attempts": 10, "mcnemar_p": 0.5}
    return _write(folder, "gate.json", json.dumps(verdict | {"only_parent": 2, "only_candidate": 1}))


def _evaluated(folder: Path, model: str, right: int) -> tuple[Path, dict[str, Any]]:
    """Write what evaluating 40 items leaves, the first `right` of them answered right."""
    rows = [
        {
            "idx": idx,
            "question": QUESTION,
            "gt": "2",
            "code": [r"<script>alert(1)</script> So \[x^2\] is \boxed{2}.", "no"],
            "pred": ["2", ""],
            "score": [idx < right, idx < right // 2],
            "verdict": ["correct" if idx < right else "wrong", "correct" if idx < right // 2 else "unparsed"],
            "finish_reason": ["stop", "length"],
        }
        for idx in range(40)
    ]
    for benchmark in ("word_problems", "other"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        _write(folder / benchmark, "test_cot_-1_seed1_t0.6_s0_e-1_result.jsonl", lines)
    share = right / 40
    score = {
        "accuracy": share,
        "low": share - 0.01,
        "high": share + 0.01,
        "n": 40,
        "token_entropy": 0.123,
        "truncated": 9,
    }
    score |= {"correct": right, "wrong": 40 - right, "unparsed": 5, "timeout": 6, "gold_unreadable": 0}
    several = score | {"pass_at_k": {"1": share, "2": 0.9}}
    metrics = {"word_problems": score | {"pass_at_k": {}}, "other": several}
    name = f"evaluate/{model}"
    return folder, record(name, "evaluate", [model], metrics=metrics)


def _write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder
