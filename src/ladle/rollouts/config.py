"""Attempts before they are made: recipe sections of rollouts and gates, what can be known of them, their rehearsal.

Problems with known answers are attempted by a model and graded by a verifier.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ladle.checkup import Checkup, Finding, Shrinking, guarded, warning
from ladle.config import Config, execution, location
from ladle.data.formats import columns_of_template
from ladle.errors import UserError
from ladle.evaluation.config import PromptConfig
from ladle.generation.request import SamplingConfig, Workers
from ladle.models.before import check_positions, check_template, small_copy

PROBLEMS, NEW_TOKENS = 2, 16
"""Of a rehearsal."""


class PromptSource(Config):
    """Problems with known answers."""

    dataset: str = location()
    """A name of the recipe's `datasets:`, a Hub id, a folder, or a jsonl/parquet glob."""
    split: str = "train"
    """Split to read."""
    question: str = "{question}"
    """How a row becomes a question: text with the row's columns in braces."""
    messages: str | None = None
    """Column with a conversation up to the answer, in place of `question`; the row's `tools` and
    `chat_template_kwargs` reach the chat template too."""
    answer: str = "{answer}"
    """How a row becomes the known answer."""
    first: int = Field(0, ge=0)
    """Number of the first problem to use; past the last one they start over."""
    limit: int | None = Field(None, gt=0)
    """Problems to use; unset uses all."""

    @field_validator("question", "answer")
    @classmethod
    def _check_template(cls, template: str, info: ValidationInfo) -> str:
        columns_of_template(template, f"prompts.{info.field_name}")
        return template


class AttemptConfig(SamplingConfig, Workers, PromptConfig):
    """How problems are attempted."""

    prompts: PromptSource

    @model_validator(mode="after")
    def _check_conversations(self) -> Self:
        column, question = self.prompts.messages, PromptSource.model_fields["question"].default
        others = {"prompt": self.prompt not in (None, "chat"), "system_prompt": self.system_prompt is not None}
        others |= {"few_shot": bool(self.few_shot), "prompts.question": self.prompts.question != question}
        if column is not None and (names := [name for name, is_set in others.items() if is_set]):
            problem = f"prompts.messages takes whole conversations from column {column!r}, and {names[0]} is set too"
            raise UserError(problem, f"remove {names[0]}, or prompts.messages")
        return self


class RolloutConfig(AttemptConfig):
    """Completions of the policy, labelled by whether the verifier finds the known answer in them."""

    model: str | None = location(None)
    """The policy: `soup`, `pretrained`, `base` or a path; unset is the recipe's latest."""
    samples: int = Field(4, ge=1)
    """Completions a problem."""
    keep: Literal["all", "mixed"] = "all"
    """Problems whose attempts are kept: all, or only `mixed` ones, which some attempts solved and some did not; the
    others say nothing of what makes an attempt right."""
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
    every: int = execution(1, ge=1)
    """Rounds between two gates; the last round always has one. A gate compares with the model that the one before it
    kept."""
    significance: float = Field(default=0.05, gt=0, le=1)
    """The round's model has to solve more, with McNemar's two-sided p at most this; at 1 it has to solve no
    fewer, which lets rounds through that are better by luck."""


# Before they are made.

AttemptT = TypeVar("AttemptT", bound=AttemptConfig)
SamplingT = TypeVar("SamplingT", bound=SamplingConfig)


def check_attempts(check: Checkup) -> Iterator[Finding]:
    """Yield whether there are problems with answers, and what attempting them takes of the model and the machine."""
    from ladle.data.before import check_problems  # which needs pyarrow

    config: AttemptConfig = check.config
    yield from check_problems(check, config.prompts)
    yield from check_generation(
        check, config, check.key, config.prompt == "chat" or config.prompts.messages is not None
    )


def check_generation(check: Checkup, sampling: SamplingConfig, key: str, is_chat: bool) -> Iterator[Finding]:
    """Yield whether the model and the machine can generate as `sampling`, at `key` of the recipe, says."""
    if check.config.executor == "ray":
        yield from check.needs("ray", "pip install 'ladle[ray]'")
    if sampling.backend == "vllm":
        yield from check.needs("vllm", "pip install vllm")
    yield from check_positions(check, f"{key}.max_new_tokens", sampling.max_new_tokens, is_new_tokens=True)
    if sampling.backend == "transformers":
        yield from guarded("model", key, lambda: _check_slots(check, key))
    if is_chat:
        yield from guarded("model", key, lambda: check_template(check, f"{check.key}.prompt"))


def _check_slots(check: Checkup, key: str) -> Iterator[Finding]:
    from ladle.generation.transformers_backend import find_fault

    model = None if check.model_config is None else small_copy(json.dumps(check.model_config))
    if model is not None and (fault := find_fault(model)):
        message = f"transformers' generate makes its completions, one at a time: {fault}"
        yield warning("model", key, message, "allow for the time, or use backend=vllm")


def shrink_attempts(config: AttemptT, shrinking: Shrinking) -> AttemptT:
    """Return short attempts at two problems, by one worker."""
    prompts = config.prompts.model_copy(update={"limit": PROBLEMS})
    changes = {"prompts": prompts, "workers": 1, "executor": "processes"}
    return shrink_sampling(config, shrinking).model_copy(update=changes)


def shrink_sampling(config: SamplingT, shrinking: Shrinking) -> SamplingT:
    """Return sampling settings of few new tokens, by a backend that this machine has."""
    changes: dict[str, Any] = {"max_new_tokens": NEW_TOKENS}
    if config.backend == "vllm" and not shrinking.gpus:
        shrinking.say("transformers instead of vLLM, without a GPU")
        changes["backend"] = "transformers"
    return config.model_copy(update=changes)
