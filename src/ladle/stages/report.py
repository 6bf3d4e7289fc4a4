"""Write the run's page: `index.html`, one file that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.checkup import Checkup, Estimate, Measured
from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.reporting.page.run`."""
    from ladle.reporting.page import run

    return run(config, inputs, out)


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return the rehearsal's own time."""
    return Estimate(measured.seconds)


STAGE = Stage("report", run, volatile=("*",), extrapolate=extrapolate)
