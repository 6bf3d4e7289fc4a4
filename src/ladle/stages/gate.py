"""Keep the better of two models, a round's result and its parent: `model/`, and the scores in `gate.json`."""

from __future__ import annotations

from ladle.rollouts.config import check_attempts
from ladle.stage import Stage, deferred

run = deferred("ladle.rollouts.rollout:run_gate")


STAGE = Stage("gate", run, version=2, wants_gpus=True, check=check_attempts)
