"""Write the run's page: `index.html`, one file that opens anywhere."""

from __future__ import annotations

from pathlib import Path

from ladle.artifacts.record import read_record
from ladle.reporting.config import PageConfig
from ladle.reporting.page import render_page
from ladle.reporting.scores import collect_scores
from ladle.stage import Inputs, StageResult


def run(config: PageConfig, inputs: Inputs, out: Path) -> StageResult:
    """Draw the page from the artifacts of every other step; each role is a step's name."""
    records = {name: (paths[0], read_record(paths[0])) for name, paths in inputs.items()}
    (out / "index.html").write_text(render_page(config.title, records), encoding="utf-8")
    return StageResult({"steps": len(records)}, collect_scores(records))
