"""Sample completions of the policy and label each by its answer: `train.jsonl` of prompt, completion, label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.executors import Shard
from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.rollouts.rollout.run`."""
    from ladle.rollouts.rollout import run

    return run(config, inputs, out)


def run_shard(config: Any, inputs: Inputs, out: Path, shard: Shard) -> None:
    """See `ladle.rollouts.rollout.run_shard`."""
    from ladle.rollouts.rollout import run_shard

    run_shard(config, inputs, out, shard)


STAGE = Stage("rollout", run, run_shard=run_shard, wants_gpus=True)
