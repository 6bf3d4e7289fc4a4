"""Keep the better of two models, a round's result and its parent: `model/`, and the scores in `gate.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.rollouts.before import check_attempts
from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.rollouts.rollout.run_gate`."""
    from ladle.rollouts.rollout import run_gate

    return run_gate(config, inputs, out)


STAGE = Stage("gate", run, wants_gpus=True, check=check_attempts)
