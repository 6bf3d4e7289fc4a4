"""Write the run's page, `index.html`, one file that opens anywhere; and the same in short, `report.md`."""

from __future__ import annotations

from ladle.checkup import same_seconds
from ladle.stage import Stage, deferred

run = deferred("ladle.reporting.page:run")


STAGE = Stage("report", run, version=2, volatile=("*",), extrapolate=same_seconds)
