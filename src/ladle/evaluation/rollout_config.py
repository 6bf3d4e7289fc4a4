"""Recipe section of the rollout stage: prompts with known answers, sampled by the policy and labelled by a verifier."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ladle.config import Config, location
from ladle.evaluation.config import PromptStyle
from ladle.generation.config import SamplingConfig


class PromptSource(Config):
    """Problems with known answers."""

    dataset: str = location()
    """A name of the recipe's `datasets:`, a Hub id, a folder, or a jsonl/parquet glob."""
    split: str = "train"
    question: str = "{question}"
    """How a row becomes a question: text with the row's columns in braces."""
    answer: str = "{answer}"
    """How a row becomes the known answer."""
    limit: int | None = Field(None, gt=0)
    """Problems to use, from the first; unset uses all."""


class RolloutConfig(SamplingConfig):
    """Completions of the policy, labelled by whether the verifier finds the known answer in them."""

    model: str | None = location(None)
    """The policy: `soup`, `pretrained`, `base` or a path; unset is the recipe's latest."""
    prompts: PromptSource
    prompt: PromptStyle = "cot"
    """Prompt format, by the names that evaluation uses."""
    samples: int = Field(4, ge=1)
    """Completions a problem."""
    verifier: Literal["math"] = "math"
    """What labels a completion: `math` grades its answer; unparsed and timed-out ones are dropped and counted."""
