"""Average models of one architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.soup.make.run`."""
    from ladle.soup.make import run

    return run(config, inputs, out)


STAGE = Stage("soup", run, version=2)
