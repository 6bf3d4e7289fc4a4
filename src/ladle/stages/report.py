"""Write the run's page: `index.html`, one file that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.reporting.report.run`."""
    from ladle.reporting.report import run

    return run(config, inputs, out)


STAGE = Stage("report", run, volatile=("*",))
