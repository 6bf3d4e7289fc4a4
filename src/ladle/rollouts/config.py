"""Recipe sections of rollouts and gates: problems with known answers, attempted by a model and graded by a verifier."""

from __future__ import annotations

from pydantic import Field

from ladle.config import Config, IsoDate, location
from ladle.evaluation.benchmark import PromptStyle
from ladle.generation.request import SamplingConfig, Workers


class PromptSource(Config):
    """Problems with known answers."""

    dataset: str = location()
    """A name of the recipe's `datasets:`, a Hub id, a folder, or a jsonl/parquet glob."""
    split: str = "train"
    question: str = "{question}"
    """How a row becomes a question: text with the row's columns in braces."""
    answer: str = "{answer}"
    """How a row becomes the known answer."""
    first: int = Field(0, ge=0)
    """Number of the first problem to use; past the last one they start over."""
    limit: int | None = Field(None, gt=0)
    """Problems to use; unset uses all."""


class AttemptConfig(SamplingConfig, Workers):
    """How problems are attempted."""

    prompts: PromptSource
    prompt: PromptStyle = "cot"
    """Prompt format, by the names that evaluation uses."""
    template_date: IsoDate | None = None
    """For `chat`: the day (2026-01-31) that a chat template which writes today's date writes instead."""


class RolloutConfig(AttemptConfig):
    """Completions of the policy, labelled by whether the verifier finds the known answer in them."""

    model: str | None = location(None)
    """The policy: `soup`, `pretrained`, `base` or a path; unset is the recipe's latest."""
    samples: int = Field(4, ge=1)
    """Completions a problem."""
    corrupt_answers: bool = False
    """Where no attempt at a problem was wrong, add one of its right ones with another problem's answer, as undesirable.
    A fallback: the policy may learn to tell such text from its own instead of getting better at the problem."""

    def in_round(self, number: int) -> RolloutConfig:
        """Return the settings of a later round: the problems that follow those of the rounds before it.

        Args:
            number: the round, from 0.
        """
        if number == 0:
            return self
        prompts = self.prompts
        first = prompts.first + number * (prompts.limit or 0)
        # a round that goes over the same problems again samples them by other seeds
        seed = self.seed if prompts.limit else self.seed + number
        return self.model_copy(update={"prompts": prompts.model_copy(update={"first": first}), "seed": seed})


class GateConfig(AttemptConfig):
    """Problems that decide whether a round's model replaces its parent: in neither training nor test data."""

    temperature: float = Field(default=0.0, ge=0)
    """Divisor of the logits; 0 takes the most likely token (greedy)."""
    significance: float = Field(default=0.05, gt=0, le=1)
    """The round's model has to solve more, with McNemar's two-sided p at most this; at 1 it has to solve no
    fewer, which lets rounds through that are better by luck."""
