"""Documents from many sources, by exact ratio, as packed rows of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.executors import Shard
from ladle.stage import Inputs, Stage, StageResult


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.data.mix.run`."""
    from ladle.data.mix import run

    return run(config, inputs, out)


def run_shard(config: Any, inputs: Inputs, out: Path, shard: Shard) -> None:
    """See `ladle.data.mix.run_shard`."""
    from ladle.data.mix import run_shard

    run_shard(config, inputs, out, shard)


STAGE = Stage("mix", run, run_shard=run_shard)
