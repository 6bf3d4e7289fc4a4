"""Write the run's page: `index.html`, one file that opens anywhere."""

from __future__ import annotations

from ladle.checkup import same_seconds
from ladle.stage import Stage, deferred

run = deferred("ladle.reporting.page:run")


STAGE = Stage("report", run, volatile=("*",), extrapolate=same_seconds)
