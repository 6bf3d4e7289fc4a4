"""What a KTO training needs of its data and its reference model: `<split>/` with token ids and log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.kto.reference.run`."""
    from ladle.kto.reference import run

    return run(config, inputs, out)


STAGE = Stage("kto_reference", run, wants_gpus=True)
