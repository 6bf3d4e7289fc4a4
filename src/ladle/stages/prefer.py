"""Join preference data into one dataset of prompt, completion and label, which `datasets.load_from_disk` opens."""

from __future__ import annotations

from ladle.checkup import Shrinking, same_seconds
from ladle.data.config import ROLLOUTS, PreferConfig
from ladle.stage import Stage, deferred

EXAMPLES = 4
"""Rows of each source in a rehearsal."""

run = deferred("ladle.data.prefer:run")
peek = deferred("ladle.excerpts:preferences")


def shrink(config: PreferConfig, shrinking: Shrinking) -> PreferConfig:
    """Return the same sources with few rows of each; rollouts are few already."""
    data = [one if one.dataset == ROLLOUTS else one.model_copy(update={"limit": EXAMPLES}) for one in config.data]
    return config.model_copy(update={"data": data})


STAGE = Stage("prefer", run, version=2, section=PreferConfig, shrink=shrink, extrapolate=same_seconds, peek=peek)
