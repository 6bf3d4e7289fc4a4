"""Attempts before they are made: the problems, the model and the machine they need, and their rehearsal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from ladle.checkup import Checkup, Finding, Shrinking, guarded, warning
from ladle.generation.request import SamplingConfig
from ladle.models.before import check_positions, check_template, small_copy
from ladle.rollouts.config import AttemptConfig

AttemptT = TypeVar("AttemptT", bound=AttemptConfig)
SamplingT = TypeVar("SamplingT", bound=SamplingConfig)

PROBLEMS = 2
NEW_TOKENS = 16


def check_attempts(check: Checkup) -> Iterator[Finding]:
    """Yield whether there are problems with answers, and what attempting them takes of the model and the machine."""
    from ladle.data.before import check_problems  # which needs pyarrow

    config: AttemptConfig = check.config
    yield from check_problems(check, config.prompts)
    yield from check_generation(check, config, check.key, config.prompt == "chat")


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
