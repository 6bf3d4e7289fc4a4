"""Join preference data into one dataset of prompt, completion and label, which `datasets.load_from_disk` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.checkup import Checkup, Estimate, Measured, Shrinking
from ladle.data.config import ROLLOUTS, PreferConfig
from ladle.stage import Inputs, Stage, StageResult

EXAMPLES = 4
"""Rows of each source in a rehearsal."""


def run(config: Any, inputs: Inputs, out: Path) -> StageResult:
    """See `ladle.data.prefer.run`."""
    from ladle.data.prefer import run

    return run(config, inputs, out)


def shrink(config: PreferConfig, shrinking: Shrinking) -> PreferConfig:
    """Return the same sources with few rows of each; rollouts are few already."""
    data = [one if one.dataset == ROLLOUTS else one.model_copy(update={"limit": EXAMPLES}) for one in config.data]
    return config.model_copy(update={"data": data})


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return the rehearsal's own time, most of which is starting."""
    return Estimate(measured.seconds)


STAGE = Stage("prefer", run, section=PreferConfig, shrink=shrink, extrapolate=extrapolate)
