"""Sample completions of the policy and label each by its answer: `train.jsonl` of prompt, completion, label."""

from __future__ import annotations

from ladle.checkup import Checkup, Estimate, Measured, Shrinking
from ladle.rollouts.config import RolloutConfig, check_attempts, shrink_attempts
from ladle.stage import Stage, deferred

DEFAULT_PROBLEMS = 10_000
"""Taken for a disk estimate if the recipe sets no limit."""

run = deferred("ladle.rollouts.rollout:run")
run_shard = deferred("ladle.rollouts.rollout:run_shard")


def bytes_written(check: Checkup) -> int:
    """Return the size of the completions as text."""
    config: RolloutConfig = check.config
    return (config.prompts.limit or DEFAULT_PROBLEMS) * config.samples * (config.max_new_tokens * 8 + 1000)


def shrink(config: RolloutConfig, shrinking: Shrinking) -> RolloutConfig:
    """Return two short completions of two problems each."""
    return shrink_attempts(config, shrinking).model_copy(update={"samples": 2})


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return the rehearsal's time times the new tokens; a true run's larger batch beats it."""

    def tokens(config: RolloutConfig) -> int:
        return (config.prompts.limit or 0) * config.samples * config.max_new_tokens

    return Estimate(measured.seconds * tokens(check.config) / tokens(measured.config) if tokens(check.config) else None)


STAGE = Stage(
    "rollout",
    run,
    run_shard,
    version=2,
    wants_gpus=True,
    section=RolloutConfig,
    check=check_attempts,
    bytes_written=bytes_written,
    shrink=shrink,
    extrapolate=extrapolate,
    peek=deferred("ladle.excerpts:rollouts"),
)
