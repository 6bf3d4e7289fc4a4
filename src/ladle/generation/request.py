"""Requests for completions: how they are sampled, what decides each of them, and when it ends. Free of torch.

A `Request` carries everything that decides its sample, its own seed included, so that the same request gives the same
sample in any batch, order, process or restart. Backends take an iterable of requests and yield a `Sample` for each as
it finishes, in no promised order.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from blake3 import blake3
from pydantic import Field

from ladle.config import Config, execution
from ladle.errors import UserError
from ladle.log import get_logger

logger = get_logger(__name__)


class SamplingConfig(Config):
    """Sampling settings of one run; every field but `batch_size`, `backend` and `endpoint` decides the result."""

    temperature: float = Field(default=1.0, ge=0)
    """Divisor of the logits; 0 takes the most likely token (greedy)."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Smallest probability mass to keep, most likely tokens first (nucleus sampling, arXiv 1904.09751); 1 keeps all."""

    top_k: int = Field(default=0, ge=0)
    """Number of most likely tokens to keep before `top_p` applies; 0 keeps all."""

    samples: int = Field(default=1, ge=1)
    """Completions for each prompt."""

    max_new_tokens: int = Field(default=1024, ge=1)
    """Tokens after which a completion is cut (finish reason `length`)."""

    seed: int = 1
    """Root of every sample's own seed: see `ladle.generation.request.sample_seed`."""

    stop: list[str] = []
    """Texts that end a completion and are cut from it, beside the model's end-of-sequence ids."""

    batch_size: int = execution(64, ge=1)
    """Completions in flight at once."""

    backend: Literal["transformers", "vllm", "http"] = execution("transformers")
    """What runs the model: transformers here, vLLM (extra `vllm`), or a server that speaks OpenAI's protocol."""

    endpoint: str | None = execution(None)
    """For `backend: http`: the server's base URL, such as `http://localhost:8000/v1`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make.

    Attributes:
        id: `<task>/<item>/<sample>`, unique among the requests that are completed together.
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

    @property
    def task(self) -> str:
        """The benchmark or dataset that the request belongs to."""
        return self.id.partition("/")[0]


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
    finish_reason: Literal["stop", "length"]


class Generator(Protocol):
    """Anything that turns requests into samples."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield one sample for each request, as they finish."""
        ...


def make_requests(
    sampling: SamplingConfig, task: str, item: int, prompt_ids: Sequence[int], stop: Sequence[str] = ()
) -> list[Request]:
    """Return the requests for all samples of one prompt.

    Args:
        sampling: the run's settings.
        task: the benchmark or dataset that the prompt's item belongs to; it and `item` enter the samples' seeds.
        item: the item's number there.
        prompt_ids: the prompt.
        stop: texts that end a completion of this prompt, beside the settings' own.

    Raises:
        UserError: the prompt has no tokens.
    """
    if not prompt_ids:
        raise UserError(f"the prompt of {task}/{item} has no tokens", "give every item a non-empty question")
    return [
        Request(
            f"{task}/{item}/{sample}",
            list(prompt_ids),
            sample_seed(sampling.seed, task, item, sample),
            sampling.max_new_tokens,
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            (*stop, *sampling.stop),
        )
        for sample in range(sampling.samples)
    ]


def sample_seed(run_seed: int, task: str, item: int | str, sample: int) -> int:
    """Return the 64-bit seed of one sample: the first eight bytes of a blake3 over the four names.

    Args:
        run_seed: the run's own seed.
        task: the benchmark or dataset that the item belongs to.
        item: the item's number or id there.
        sample: the number of the sample among the item's samples, from 0.
    """
    name = json.dumps([run_seed, task, item, sample], ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(blake3(name.encode()).digest(8), "little")


def openai_settings(request: Request, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Return a request's settings by the names of OpenAI's protocol and of vLLM's additions to it."""
    return {
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed % 2**63,  # servers read a signed 64-bit number
        "stop": list(request.stop),
        "stop_token_ids": list(stop_ids),
    } | ({"top_k": request.top_k} if request.top_k else {})  # strict servers refuse what they do not know


def warn_beyond_context(longest: int, limit: int | None) -> None:
    """Warn of a run that may leave the positions its model was made for.

    Args:
        longest: tokens of the longest prompt and completion together.
        limit: the model's `max_position_embeddings`, where its config has it.
    """
    if limit is not None and longest > limit:
        text = "prompts and completions may reach %d tokens, and the model was made for %d: %s"
        logger.warning(text, longest, limit, "lower sampling.max_new_tokens")


# When a completion ends.


def stop_token_ids(model_eos: int | list[int] | None, tokenizer: Any) -> list[int]:
    """Return every id that ends a completion, sorted.

    They are the generation config's and the tokenizer's end-of-sequence ids, `<|im_end|>` where the vocabulary has
    it, and the special token that the chat template writes after an assistant's turn: models trained on a template
    often end a turn with that one and never with their eos.

    Args:
        model_eos: `generation_config.eos_token_id` of the model.
        tokenizer: a Hugging Face tokenizer.
    """
    model_ids = [model_eos] if isinstance(model_eos, int) else model_eos or []
    ids = {*model_ids, tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")}
    if tokenizer.chat_template:
        answer = "ladle"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(answer)[2]
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        turn_end = max((text for text in special if text and after.startswith(text)), key=len, default=None)
        ids.add(special.get(turn_end))
    return sorted(ids - {None})


def make_sample(request: Request, token_ids: list[int], stop_ids: Container[int], tokenizer: Any) -> Sample:
    """Return the sample that a request's new tokens make, cut at the first stop text."""
    if request.stop and (cut := cut_at_stop(tokenizer, token_ids, request.stop)):
        return Sample(request.id, *cut, "stop")
    reason = "stop" if token_ids and token_ids[-1] in stop_ids else "length"
    return Sample(request.id, token_ids, decode(tokenizer, token_ids), reason)


def cut_at_stop(tokenizer: Any, token_ids: list[int], stop: tuple[str, ...]) -> tuple[list[int], str] | None:
    """Return the fewest first tokens whose text holds a stop text, and the text before it; None without one."""

    def holds_stop(count: int) -> bool:
        text = decode(tokenizer, token_ids[:count])
        return any(end in text for end in stop)

    if not holds_stop(len(token_ids)):
        return None
    # Once a stop text is there, more tokens do not take it away: bisect.
    kept = token_ids[: bisect_left(range(len(token_ids)), True, key=holds_stop)]
    text = decode(tokenizer, kept)
    return kept, text[: min(place for end in stop if (place := text.find(end)) >= 0)]


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """Return tokens as text, special tokens left out and spaces kept as they are."""
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
