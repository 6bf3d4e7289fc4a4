"""Documents from many sources, by exact ratio, as packed rows of tokens."""

from __future__ import annotations

from collections.abc import Iterator

from ladle.checkup import Checkup, Estimate, Finding, Measured, guarded
from ladle.data.config import MixConfig
from ladle.models.before import check_positions, check_template
from ladle.stage import Stage, deferred

run = deferred("ladle.data.mix:run")
run_shard = deferred("ladle.data.mix:run_shard")


def check(check: Checkup) -> Iterator[Finding]:
    """Yield a finding for each source, and for what the mixture takes of the model and the machine."""
    from ladle.data.before import check_mix

    config: MixConfig = check.config
    if config.executor == "ray":
        yield from check.needs("ray", "pip install 'ladle[ray]'")
    yield from check_mix(check)
    yield from check_positions(check, f"{check.key}.sequence_length", config.sequence_length)
    if chats := [source.name for source in config.sources if source.format == "messages"]:
        key = f"{check.key}.sources.{chats[0]}"
        yield from guarded("model", key, lambda: check_template(check, key))


def bytes_written(check: Checkup) -> int:
    """Return the size of the token ids; of vocabularies over 65,536 tokens they take four bytes."""
    return 4 * check.config.budget_tokens


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return the rehearsal's time times the tokens; starting counts in, so it is an upper bound."""
    seconds = measured.record["timings"]["seconds"]
    return Estimate(seconds * check.config.budget_tokens / measured.record["counters"]["tokens_in"])


STAGE = Stage(
    "mix",
    run,
    run_shard,
    version=2,
    section=MixConfig,
    check=check,
    bytes_written=bytes_written,
    shrink=deferred("ladle.data.before:shrink_mix"),
    extrapolate=extrapolate,
    peek=deferred("ladle.excerpts:packed_documents"),
)
