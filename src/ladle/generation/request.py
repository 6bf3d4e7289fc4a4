"""The one interface between whoever wants completions and whatever makes them.

A `Request` carries everything that decides its sample, its own seed included, so that the same request gives the same
sample in any batch, order, process or restart. Backends take an iterable of requests and yield a `Sample` for each as
it finishes, in no promised order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from blake3 import blake3

from ladle.errors import UserError
from ladle.generation.config import SamplingConfig
from ladle.log import get_logger

logger = get_logger(__name__)

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make.

    Attributes:
        id: the caller's name for it, unique within one call of `generate`.
        prompt_ids: the prompt's token ids, at least one.
        seed: 64-bit seed of this sample's own random stream.
        max_new_tokens: tokens after which the completion is cut.
        temperature: divisor of the logits; 0 is greedy.
        top_p: probability mass to keep; 1 keeps all.
        top_k: most likely tokens to keep; 0 keeps all.
        stop: texts that end the completion.
    """

    id: str
    prompt_ids: list[int]
    seed: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    @property
    def max_length(self) -> int:
        """Tokens of the prompt and of the longest completion together."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished completion.

    Attributes:
        id: the request's id.
        token_ids: the new tokens, the end-of-sequence id that ended them included.
        text: the new tokens as text, without special tokens and without the stop text that ended them.
        finish_reason: `stop` (an end-of-sequence id or a stop text) or `length` (cut at `max_new_tokens`).
    """

    id: str
    token_ids: list[int]
    text: str
    finish_reason: FinishReason


class Generator(Protocol):
    """Anything that turns requests into samples."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield one sample for each request, as they finish."""
        ...


def sample_seed(run_seed: int, benchmark: str, item: int | str, sample: int) -> int:
    """Return the 64-bit seed of one sample: the first eight bytes of a blake3 over the four names.

    Args:
        run_seed: the run's own seed.
        benchmark: the benchmark or dataset that the item belongs to.
        item: the item's index or id there.
        sample: the number of the sample among the item's samples, from 0.
    """
    name = json.dumps([run_seed, benchmark, item, sample], ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(blake3(name.encode()).digest(8), "little")


def warn_beyond_context(longest: int, limit: int | None) -> None:
    """Say that a run may leave the positions that its model was made for.

    Args:
        longest: tokens of the longest prompt and completion together.
        limit: the model's `max_position_embeddings`, where its config has it.
    """
    if limit is not None and longest > limit:
        logger.warning(
            "prompts and completions may reach %d tokens, and the model was made for %d: lower sampling.max_new_tokens",
            longest,
            limit,
        )


def make_request(
    sampling: SamplingConfig, name: str, prompt_ids: Sequence[int], seed: int, stop: Sequence[str] = ()
) -> Request:
    """Return the request for one sample of a prompt under a run's sampling settings.

    Args:
        sampling: the settings.
        name: the request's id.
        prompt_ids: the prompt.
        seed: the sample's own seed.
        stop: texts that end a completion of this prompt, beside the settings' own.

    Raises:
        UserError: the prompt has no tokens.
    """
    if not prompt_ids:
        raise UserError(f"the prompt of {name!r} has no tokens", "give every item a non-empty question")
    return Request(
        id=name,
        prompt_ids=list(prompt_ids),
        seed=seed,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=(*stop, *sampling.stop),
    )
