"""Conversations as packed rows of tokens of which only the answers are trained on."""

from __future__ import annotations

from collections.abc import Iterator

from ladle.checkup import Checkup, Finding, guarded, same_seconds
from ladle.data.config import SftDataConfig
from ladle.models.before import check_positions, check_template
from ladle.stage import Stage, deferred

run = deferred("ladle.data.sft:run")


def check(check: Checkup) -> Iterator[Finding]:
    """Yield what the data takes of the model."""
    yield from check_positions(check, f"{check.key}.max_length", check.config.max_length)
    yield from guarded("model", f"{check.key}.data", lambda: check_template(check, f"{check.key}.data"))


STAGE = Stage(
    "sft_data",
    run,
    section=SftDataConfig,
    check=check,
    shrink=lambda config, _: config,
    extrapolate=same_seconds,
)
