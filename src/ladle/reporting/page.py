"""One self-contained HTML page about a run: results with intervals, curves, samples, and where each part came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ladle.reporting.plots import accuracy_plot, curve_plot

LOG_NAME = "training_log.jsonl"
CURVES = {"pretrain": ("loss",), "kto": ("loss", "z0", "rewards/chosen", "rewards/rejected")}
"""Logged values to draw, by stage."""

Records = Mapping[str, tuple[Path, dict[str, Any]]]
"""Step name to the artifact's folder and its record."""


def render_page(title: str, records: Records) -> str:
    """Return the page's HTML."""
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("ladle.reporting").joinpath("page.html").read_text(encoding="utf-8"))
    scores = collect_scores(records)
    return template.render(
        title=title,
        scores=scores,
        accuracy_plots=[accuracy_plot(models, benchmark) for benchmark, models in scores.items()],
        curves=[plot for name, (folder, record) in records.items() for plot in _curves(name, folder, record)],
        steps=[_step_row(name, record) for name, (_, record) in records.items()],
        samples=[sample for name, (folder, record) in records.items() for sample in _samples(name, folder, record)],
        environment=next(iter(records.values()))[1]["environment"] if records else {},
    )


def collect_scores(records: Records) -> dict[str, dict[str, dict[str, Any]]]:
    """Return benchmark → model → {accuracy, n, low, high}, both in the recipe's order."""
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for name, (_, record) in records.items():
        if record["stage"] == "evaluate":
            for benchmark, metrics in record["metrics"].items():
                scores.setdefault(benchmark, {})[name.rsplit("/", 1)[-1]] = metrics
    return scores


def _curves(name: str, folder: Path, record: dict[str, Any]) -> list[str]:
    path = folder / LOG_NAME
    if record["stage"] not in CURVES or not path.is_file():
        return []
    log = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [curve_plot(name, log, CURVES[record["stage"]])]


def _step_row(name: str, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "fingerprint": record["fingerprint"][:12],
        "digest": record["digest"][:12],
        "seconds": record["timings"]["seconds"],
        "size_mb": sum(entry["size_bytes"] for entry in record["files"].values()) / 1e6,
        "counters": record["counters"],
        "config": json.dumps(record["config"], indent=2, ensure_ascii=False),
    }


def _samples(name: str, folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the first completion of each benchmark, so that a reader sees what the models say."""
    if record["stage"] != "evaluate":
        return []
    rows = []
    for path in sorted(folder.glob("*/*_result.jsonl")):
        with path.open(encoding="utf-8") as lines:
            row = json.loads(next(lines, "null"))
        if row is not None:
            verdict = "right" if row["score"][0] else "wrong"
            rows.append(
                {
                    "model": name.rsplit("/", 1)[-1],
                    "question": row["question"],
                    "completion": row["code"][0],
                    "gold": row["gt"],
                    "verdict": verdict,
                }
            )
    return rows
