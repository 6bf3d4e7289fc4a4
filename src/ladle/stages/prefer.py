"""Join preference data into one dataset of prompt, completion and label, which `datasets.load_from_disk` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.data.prefer.run`."""
    from ladle.data.prefer import run

    return run(config, inputs, out)


STAGE = Stage("prefer", run)
