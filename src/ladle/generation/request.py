"""Requests for completions: how they are sampled, what decides each of them, and when it ends. Free of torch.

A `Request` carries everything that decides its sample, its own seed included, so that the same request gives the same
sample in any batch, order, process or restart. Backends take an iterable of requests and yield a `Sample` for each as
it finishes, in no promised order.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, Any, Literal, Protocol

from blake3 import blake3
from pydantic import Field

from ladle.config import Config, execution
from ladle.errors import UserError
from ladle.executors import ExecutorKind


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

    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a completion and are cut from it, beside the model's end-of-sequence ids."""

    batch_size: int = execution(64, ge=1)
    """Completions in flight at once."""

    backend: Literal["transformers", "vllm", "http"] = execution("transformers")
    """What runs the model: transformers here, vLLM (extra `vllm`), or a server that speaks OpenAI's protocol."""

    endpoint: str | None = execution(None)
    """For `backend: http`: the server's base URL, such as `http://localhost:8000/v1`."""


class Workers(Config):
    """Where completions are made."""

    workers: int = execution(1, ge=1)
    """Processes that generate side by side, one GPU each where there are several."""
    executor: ExecutorKind = execution("processes")
    """Where those processes are: on this machine, or on a Ray cluster."""


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
        token_ids: the new tokens as they were sampled, with the end-of-sequence id or the stop text that ended them;
            None where a server does not return them.
        text: the new tokens as text, without special tokens and without the stop text that ended them.
        finish_reason: `eos` (an end-of-sequence id), `stop` (a stop text) or `length` (cut at `max_new_tokens`).
        entropy: mean over the new tokens of the entropy in nats of what each was drawn from, at the temperature and
            before top_p and top_k; None where they are greedy, or the backend does not say.
    """

    id: str
    token_ids: list[int] | None
    text: str
    finish_reason: Literal["eos", "stop", "length"]
    entropy: float | None = field(default=None, compare=False)


class Generator(Protocol):
    """Anything that turns requests into samples."""

    report: Callable[[int], None]
    """Is called with the number of tokens, of all requests' `max_new_tokens`, that were made or are not needed any
    more; and with 0 where nothing is known but that the work goes on."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield one sample for each request, as they finish."""
        ...


def make_requests(
    sampling: SamplingConfig,
    task: str,
    item: int,
    prompt_ids: Sequence[int],
    stop: Sequence[str] = (),
    positions: int | None = None,
) -> list[Request]:
    """Return the requests for all samples of one prompt.

    Args:
        sampling: the run's settings.
        task: the benchmark or dataset that the prompt's item belongs to; it and `item` enter the samples' seeds.
        item: the item's number there.
        prompt_ids: the prompt.
        stop: texts that end a completion of this prompt, beside the settings' own.
        positions: tokens that the model takes, prompt and completion together; a completion ends at the last of them.

    Raises:
        UserError: the prompt has no tokens, or leaves no room for any.
    """
    name, room = f"{task}/{item}", sampling.max_new_tokens
    if not prompt_ids:
        raise UserError(f"the prompt of {name} has no tokens", "give every item a non-empty question")
    if positions is not None and (room := min(room, positions - len(prompt_ids))) < 1:
        problem = f"the prompt of {name} has {len(prompt_ids):,} tokens, and the model takes {positions:,} in all"
        fix = "leave the item out (limit, start, end), show fewer examples (in a chat: /reset), or use a longer context"
        raise UserError(problem, fix)
    settings = sampling.temperature, sampling.top_p, sampling.top_k, (*stop, *sampling.stop)
    return [
        Request(f"{name}/{n}", list(prompt_ids), sample_seed(sampling.seed, task, item, n), room, *settings)
        for n in range(sampling.samples)
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
    from ladle.models.chat import render  # needs transformers, which reading a recipe does not

    model_ids = [model_eos] if isinstance(model_eos, int) else model_eos or []
    ids = {*model_ids, tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")}
    answer = "ladle"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    templates = tokenizer.chat_template or {}
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        try:
            text = render(tokenizer, turns, chat_template=template)
        except UserError:
            continue  # it is for other turns than these
        after = text.rpartition(answer)[2]
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        ids.add(special.get(max((end for end in special if end and after.startswith(end)), key=len, default=None)))
    return sorted(ids - {None})


def mean_entropy(samples: Iterable[Sample]) -> float | None:
    """Return the mean entropy of all tokens of samples, in nats; None where that of one is not known."""
    pairs = [(one.entropy, len(one.token_ids or ())) for one in samples]
    known = [(entropy, count) for entropy, count in pairs if entropy is not None]
    return fmean(*zip(*known, strict=True)) if known and len(known) == len(pairs) else None


def make_sample(
    request: Request, token_ids: list[int], stop_ids: Container[int], tokenizer: Any, entropies: Sequence[float] = ()
) -> Sample:
    """Return the sample that a request's new tokens make, cut at the first stop text."""
    is_ended = bool(token_ids) and token_ids[-1] in stop_ids
    cut = cut_at_stop(tokenizer, token_ids[:-1] if is_ended else token_ids, request.stop) if request.stop else None
    kept, text = cut or (token_ids, decode(tokenizer, token_ids))
    entropy = fmean(entropies[: len(kept)]) if entropies else None
    return Sample(request.id, kept, text, "stop" if cut else "eos" if is_ended else "length", entropy)


def cut_at_stop(tokenizer: Any, token_ids: list[int], stop: tuple[str, ...]) -> tuple[list[int], str] | None:
    """Return the fewest first tokens whose text holds a stop text, and the text before it; None without one."""
    if not shows_stop(tokenizer, token_ids, stop):
        return None
    # Once a stop text is there, more tokens do not take it away: bisect.
    counts = range(len(token_ids))
    kept = token_ids[: bisect_left(counts, True, key=lambda count: shows_stop(tokenizer, token_ids[:count], stop))]
    text = decode(tokenizer, kept)
    return kept, text[: min((place for end in stop if (place := text.find(end)) >= 0), default=None)]


def shows_stop(tokenizer: Any, token_ids: list[int], stop: tuple[str, ...]) -> bool:
    """Return whether the tokens' text, special tokens included, holds a stop text."""
    text = tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
    return any(end in text for end in stop)


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """Return tokens as text, special tokens left out and spaces kept as they are."""
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
