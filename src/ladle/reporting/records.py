"""What a page is made from: the finished steps of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Records = Mapping[str, tuple[Path, dict[str, Any]]]
"""Step name to the artifact's folder and its record, in the recipe's order."""


def of_stage(records: Records, stage: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield the name, folder and record of each step of one stage."""
    for name, (folder, record) in records.items():
        if record["stage"] == stage:
            yield name, folder, record


def model_of(step_name: str) -> str:
    """Return the model that an evaluate step scored: `evaluate/kto` → `kto`."""
    return step_name.rsplit("/", 1)[-1]
