"""Score one model on benchmarks: prompts, completions, verdicts, and the result files of the seeds' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.executors import Shard
from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.evaluation.evaluate.run`."""
    from ladle.evaluation.evaluate import run

    return run(config, inputs, out)


def run_shard(config: Any, inputs: Inputs, out: Path, shard: Shard) -> None:
    """See `ladle.evaluation.evaluate.run_shard`."""
    from ladle.evaluation.evaluate import run_shard

    run_shard(config, inputs, out, shard)


STAGE = Stage("evaluate", run, run_shard=run_shard, volatile=("*_metrics.json", "final_result.json"), wants_gpus=True)
