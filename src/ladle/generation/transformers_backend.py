"""Generation with a transformers model: a loop over slots that refills itself.

Each pass of the loop adds one token to every live row. A finished row is handed out at once and its slot goes to the
next request, so the batch stays full until requests run out, and then shrinks. Prompts are prefilled without their
last token, which joins the other rows' next step: every sampled token comes from the same step. Equal prompts are
prefilled once, and so are the tokens that all prompts of a task begin with, such as the worked examples of a few-shot
prompt.

Rows of different lengths share one cache (slots.py).

Other architectures keep a state besides keys and values, cap their scores, or attend in code of their own. They are not
listed: before the first request a few tokens are run both through the slots and plainly, and a model whose logits
differ is left to transformers' own `generate`, one request at a time, with the same random numbers.

Shapes: N live rows, V vocabulary.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from ladle.generation.request import Request, Sample, make_sample, shows_stop, stop_token_ids
from ladle.generation.sampling import draw, random_words
from ladle.generation.slots import ATTENTION, Prefix, SlotCache, fill, fill_prefix, next_logits, upload
from ladle.log import get_logger
from ladle.models.chat import count_shared
from ladle.models.load import load_model
from ladle.models.probe import CANNOT_RUN, first_line, longest_apart

logger = get_logger(__name__)

_REFILL_SHARE = 8
"""Slots are refilled when 1/8 of them are free: a prefill is a forward pass, so it has to serve several rows."""
_STOP_TEXT_EVERY = 2
"""Tokens between looks for stop texts. What is found is cut where it first appears, so this moves cost, not results."""


class TransformersGenerator:
    """Makes completions with a causal language model held in this process.

    Args:
        model: a loaded model, or the folder of one. A loaded model is used as it is; its attention is switched while a
            `generate` runs and switched back after.
        tokenizer: the model's tokenizer.
        dtype: floating-point type to load a folder's weights in.
        batch_size: completions in flight at once.
        prefill_tokens: prompt tokens, padding included, in one forward pass over prompts.
        worker: number of this process among those side by side: a folder's model goes to GPU `worker` modulo their
            count, or stays on the CPU where there is none.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        dtype: str = "float32",
        batch_size: int = 64,
        prefill_tokens: int = 8192,
        worker: int = 0,
    ) -> None:
        if isinstance(model, Path):
            loaded: Any = load_model(model, dtype=dtype)
            gpus = torch.cuda.device_count()
            model = loaded.to(f"cuda:{worker % gpus}" if gpus else "cpu")
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.prefill_tokens = batch_size, prefill_tokens
        self.report = lambda count: None
        self.on_token: Callable[[int], object] = lambda token: None
        """Is called with each new token of any request, before it is known whether the text ends there."""
        self.stop_ids = stop_token_ids(model.generation_config.eos_token_id, tokenizer)
        self.fault = find_fault(model)

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield a sample for each request as it finishes; the longest are started first."""
        # The longest first, so that none of them is left to run alone at the end; equal prompts side by side.
        # Requests are taken from the end.
        queue = sorted(requests, key=lambda request: (request.max_length, request.prompt_ids))
        longest = 0 if self.fault else longest_apart(self.model.config)
        num_in_slots = bisect_right(queue, longest, key=lambda request: request.max_length)
        if alone := queue[num_in_slots:]:
            why = self.fault or f"past {longest:,} tokens its positions depend on the longest row of a batch"
            text = "%s makes %d completions one at a time, by transformers' generate (%s): %s"
            logger.warning(text, type(self.model).__name__, len(alone), why, "sampling.backend=vllm may be faster")
        with _prepared(self.model):
            for request in alone:
                yield self._complete_alone(request)
                self.report(request.max_new_tokens)
        with _prepared(self.model, ATTENTION):
            yield from self._complete_in_slots(queue[:num_in_slots])

    def _complete_in_slots(self, queue: list[Request]) -> Iterator[Sample]:
        num_slots = min(self.batch_size, len(queue))
        cache = SlotCache(num_slots, max((request.max_length for request in queue), default=0))
        prefixes = self._prefill_shared(queue)

        def prefix_name(row: _Row) -> str:
            return row.request.task if row.request.task in prefixes else ""

        live: list[_Row] = []
        while queue or live:
            free = num_slots - len(live)
            if queue and free * _REFILL_SHARE >= num_slots:
                new = [_Row(queue.pop()) for _ in range(min(free, len(queue)))]
                for task, rows in groupby(sorted(new, key=prefix_name), key=prefix_name):
                    live += (begun := list(rows))
                    self._prefill(cache, len(live) - len(begun), begun, prefixes.get(task))
            spent, ended = len(live), self._step(cache, live)
            self.report(spent + sum(row.request.max_length - len(row.ids) for row in ended))
            for row in ended:
                yield make_sample(row.request, row.new_ids, self.stop_ids, self.tokenizer, row.entropies)

    @torch.inference_mode()
    def _prefill_shared(self, queue: list[Request]) -> dict[str, Prefix]:
        """Run what the prompts of each task begin with, where that is long; at least two tokens of each are left."""
        by_task: dict[str, list[list[int]]] = {}
        for request in queue:
            by_task.setdefault(request.task, []).append(request.prompt_ids)
        prefixes = {}
        for task, prompts in by_task.items():
            size = count_shared(prompts, kept_apart=2)
            if size and any(prompt != prompts[0] for prompt in prompts):
                prefixes[task] = fill_prefix(self.model, prompts[0][:size])
        return prefixes

    @torch.inference_mode()
    def _prefill(self, cache: SlotCache, first: int, rows: list[_Row], prefix: Prefix | None) -> None:
        """Run the prompts of new rows, each but for its last token, in passes of `prefill_tokens` at most."""
        start = prefix.length if prefix else 0
        prompts: list[tuple[int, ...]] = []
        distinct: set[tuple[int, ...]] = set()
        for prompt in (tuple(row.request.prompt_ids[start:-1]) for row in rows):
            distinct.add(prompt)
            if prompts and len(distinct) * max(map(len, distinct)) > self.prefill_tokens:
                fill(self.model, cache, first, prompts, prefix)
                first, prompts, distinct = first + len(prompts), [], {prompt}
            prompts.append(prompt)
        fill(self.model, cache, first, prompts, prefix)

    @torch.inference_mode()
    def _step(self, cache: SlotCache, live: list[_Row]) -> list[_Row]:
        """Add one token to each live row, and remove and return those that ended."""
        places = [(row.ids[-1], len(row.ids) - 1, next(row.words)) for row in live]
        token_N, position_N, word_N = upload(places, self.model.device).T
        logits_NV = next_logits(self.model, cache, token_N, position_N, max(len(row.ids) for row in live))
        settings = [(row.request.temperature, row.request.top_p, row.request.top_k) for row in live]
        token_N, entropy_N = draw(logits_NV, word_N, *torch.tensor(settings).T)
        drawn = token_N[None] if entropy_N is None else torch.stack([token_N.double(), entropy_N.double()])
        for row, (token, *entropy) in zip(live, drawn.T.tolist(), strict=True):
            row.ids.append(int(token))
            row.entropies += entropy
            self.on_token(int(token))
        done = [place for place, row in enumerate(live) if self._is_ended(row)]
        ended, remaining = [live[place] for place in done], len(live) - len(done)
        # the last live rows move into the places of those that ended
        if source := [place for place in range(remaining, len(live)) if place not in done]:
            cache.move(source, done[: len(source)])
            for place, other in zip(done, source, strict=False):
                live[place] = live[other]
        del live[remaining:]
        return ended

    def _is_ended(self, row: _Row) -> bool:
        ids, request = row.ids, row.request
        if ids[-1] in self.stop_ids or len(ids) == request.max_length:
            return True
        if not request.stop or len(ids) % _STOP_TEXT_EVERY:
            return False
        # Every token but the special ones is a byte or more, so a stop text that ended since the last look lies in this
        # many last tokens.
        width = _STOP_TEXT_EVERY + max(len(end.encode()) for end in request.stop)
        return shows_stop(self.tokenizer, row.new_ids[-width:], request.stop)

    @torch.inference_mode()
    def _complete_alone(self, request: Request) -> Sample:
        device, start = self.model.device, len(request.prompt_ids)
        words = random_words(request.seed, request.max_new_tokens).to(device)
        settings = torch.tensor([[request.temperature, request.top_p, request.top_k]]).T

        entropies: list[float] = []

        def choose(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            token, entropy = draw(scores.clone(), words[input_ids.shape[1] - start, None], *settings)
            entropies.extend(() if entropy is None else entropy.tolist())
            return torch.full_like(scores, -math.inf).scatter(1, token[:, None], 0.0)

        def shows_end(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            self.on_token(int(input_ids[0, -1]))
            is_ended = bool(request.stop) and shows_stop(self.tokenizer, input_ids[0, start:].tolist(), request.stop)
            return torch.tensor([is_ended], device=device)

        prompt = torch.tensor([request.prompt_ids], device=device)
        # A short pass, or positions stay encoded for the last long row (`dynamic_rope_update`).
        self.model(prompt[:, :1], use_cache=False)
        output = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(
                max_new_tokens=request.max_new_tokens, eos_token_id=self.stop_ids or None, pad_token_id=0
            ),
            logits_processor=[choose],
            stopping_criteria=[shows_end],
        )
        return make_sample(request, output[0, start:].tolist(), self.stop_ids, self.tokenizer, entropies)


class _Row:
    """A request in a slot: the tokens of its prompt and those after it, and what entropy these were drawn with."""

    def __init__(self, request: Request) -> None:
        self.request, self.ids = request, list(request.prompt_ids)
        self.entropies: list[float] = []
        self.words = iter(random_words(request.seed, request.max_new_tokens).tolist())

    @property
    def new_ids(self) -> list[int]:
        return self.ids[len(self.request.prompt_ids) :]


def find_fault(model: Any) -> str | None:
    """Return why the slot cache does not fit a model; None if two rows of different lengths get their plain logits."""
    text, device = model.config.get_text_config(), model.device
    rows = [[(37 * place + 11) % text.vocab_size for place in range(length)] for length in (7, 4)]
    cache = SlotCache(len(rows), len(rows[0]))
    try:
        with torch.inference_mode():
            with _prepared(model, ATTENTION):
                prefix = fill_prefix(model, rows[0][:2])  # which the other begins with, too
                fill(model, cache, 0, [tuple(ids[2:-1]) for ids in rows], prefix)
                last, position = torch.tensor([[ids[-1], len(ids) - 1] for ids in rows], device=device).T
                logits = next_logits(model, cache, last, position, len(rows[0]))
            with _prepared(model):
                inputs = [torch.tensor([ids], device=device) for ids in rows]
                plain = [model(input_ids, use_cache=False).logits[0, -1].float() for input_ids in inputs]
    except CANNOT_RUN as error:
        return first_line(error)
    difference = max(float((one - two).abs().max() / two.abs().max()) for one, two in zip(logits, plain, strict=True))
    if difference <= (1e-3 if model.dtype == torch.float32 else 5e-2):  # rounding alone: below 1e-5 in float32
        return None
    if len(cache.layers) < text.num_hidden_layers:
        return f"{len(cache.layers)} of its {text.num_hidden_layers} layers attend through transformers' interface"
    return f"its logits are {difference:.1%} off with nothing but keys and values of earlier tokens"


@contextmanager
def _prepared(model: Any, attention: str | None = None) -> Iterator[None]:
    """Let a model infer, attending by a function of this name and without settings of its own; put all back after."""
    before, was_training, settings = model.config._attn_implementation, model.training, model.generation_config
    model.set_attn_implementation(attention or before)
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.generation_config = settings
        model.train(was_training)
