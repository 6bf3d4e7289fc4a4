"""One self-contained HTML page about a run: results with intervals, curves, samples, and where each part came from."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ladle.reporting.mixtures import collect_mixtures
from ladle.reporting.plots import accuracy_plot, curve_plot, length_plot
from ladle.reporting.records import Records
from ladle.reporting.samples import collect_samples
from ladle.reporting.scores import collect_changes, collect_scores, mean_scores
from ladle.reporting.soups import collect_soups

LOG_NAME = "training_log.jsonl"
CURVES = {
    "pretrain": ("loss", "eval_loss"),
    "kto": ("loss", "z0", "rewards/chosen", "rewards/rejected"),
}
"""Logged values to draw, by stage."""


def render_page(title: str, records: Records) -> str:
    """Return the page's HTML."""
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("ladle.reporting").joinpath("page.html").read_text(encoding="utf-8"))
    scores, mixtures = collect_scores(records), collect_mixtures(records)
    return template.render(
        title=title,
        scores=scores,
        means=mean_scores(scores) if len(scores) > 1 else {},
        changes=collect_changes(records),
        accuracy_plots=[accuracy_plot(models, benchmark) for benchmark, models in scores.items()],
        curves=[plot for name, (folder, record) in records.items() for plot in _curves(name, folder, record)],
        mixtures=mixtures,
        length_plots=[length_plot(mixture["sources"], mixture["name"]) for mixture in mixtures],
        soups=collect_soups(records),
        samples=collect_samples(records),
        steps=[_step_row(name, record) for name, (_, record) in records.items()],
        environment=next(iter(records.values()))[1]["environment"] if records else {},
    )


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
