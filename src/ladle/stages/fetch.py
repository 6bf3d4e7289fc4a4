"""Get what the pipeline starts from: a clean local model, a fresh one, a Hub dataset, or generated problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.data.fetch.run`."""
    from ladle.data.fetch import run

    return run(config, inputs, out)


STAGE = Stage("fetch", run)
