"""Align a policy by KTO: `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.stage import Inputs, Stage, StageResult

TRACKER_LOGS = ("checkpoints/runs/*",)


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.kto.train.run`."""
    from ladle.kto.train import run

    return run(config, inputs, out)


STAGE = Stage("kto", run, version=2, volatile=TRACKER_LOGS, wants_gpus=True)
