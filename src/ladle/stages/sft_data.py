"""Conversations as packed rows of tokens of which only the answers are trained on."""

from __future__ import annotations

from collections.abc import Iterator

from ladle.checkup import Checkup, Finding, same_seconds
from ladle.data.config import SftDataConfig
from ladle.models.before import check_positions
from ladle.stage import Stage, deferred

run = deferred("ladle.data.sft:run")


def check(check: Checkup) -> Iterator[Finding]:
    """Yield what the data takes of the model, and what it holds."""
    yield from check_positions(check, f"{check.key}.max_length", check.config.max_length)
    if (preference := check.parent("preference")) is not None:
        from ladle.data.before import check_preference

        yield from check_preference(Checkup(preference, check.machine), allow_single_label=True)


STAGE = Stage(
    "sft_data",
    run,
    section=SftDataConfig,
    check=check,
    shrink=lambda config, _: config,
    extrapolate=same_seconds,
    peek=deferred("ladle.excerpts:packed_documents"),
)
