"""Generation with a transformers model: a loop over slots that refills itself.

Each pass of the loop adds one token to every live row. A finished row is handed out at once and its slot goes to the
next request, so the batch stays full until requests run out, and then shrinks. Prompts are prefilled without their
last token, which joins the other rows' next step: every sampled token comes from the same step. Equal prompts are
prefilled once, and so are the tokens that all prompts of a task begin with, such as the worked examples of a few-shot
prompt.

transformers' own caches keep every row of a batch equally long; in `SlotCache` each row has its own length. It is
filled from inside attention (transformers' `AttentionInterface`), after the model has made keys and values of the new
tokens alone, and masked by the model's own rule (`AttentionMaskInterface`). So one cache serves every architecture that
attends so, and DeepSeek-V3's latents are expanded once a token instead of once a token and step. The transformers
library's own continuous batching is not used: for DeepSeek-V3 it returns no tokens and no error (5.23).

Other architectures keep a state besides keys and values, cap their scores, or attend in code of their own. They are not
listed: before the first request a few tokens are run both through the slots and plainly, and a model whose logits
differ is left to transformers' own `generate`, one request at a time, with the same random numbers.

Shapes: N live rows (always the first N slots, so that the live part of every buffer is a view), V vocabulary, H query
heads, G key/value heads, T columns read, P prompt columns, K prompts' rows, D key width, E value width. A row's token
at position p is in column p of the cache.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig

from ladle.generation.request import Request, Sample, make_sample, shows_stop, stop_token_ids
from ladle.generation.sampling import draw, random_words
from ladle.log import get_logger
from ladle.models.load import load_model
from ladle.models.probe import CANNOT_RUN, first_line

logger = get_logger(__name__)

ATTENTION = "ladle_slots"
_REFILL_SHARE = 8
"""Slots are refilled when 1/8 of them are free: a prefill is a forward pass, so it has to serve several rows."""
_FIRST_COLUMNS = 64
_LEAST_SHARED = 32
"""Tokens that the prompts of a task must share for these to be prefilled apart from the rest."""
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
        longest = 0 if self.fault else _longest_apart(self.model.config)
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
        live: list[_Row] = []
        while queue or live:
            free = num_slots - len(live)
            if queue and free * _REFILL_SHARE >= num_slots:
                new = [_Row(queue.pop()) for _ in range(min(free, len(queue)))]
                new.sort(key=lambda row: row.request.task)
                for task, rows in groupby(new, key=lambda row: row.request.task):
                    live += (of_task := list(rows))
                    self._prefill(cache, len(live) - len(of_task), of_task, prefixes.get(task))
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
            first, last = min(prompts), max(prompts)
            same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
            shared = [token for token, _ in same][: min(map(len, prompts)) - 2]
            if first != last and len(shared) >= _LEAST_SHARED:
                prefixes[task] = fill_prefix(self.model, shared)
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


def _longest_apart(config: Any) -> float:
    """Return up to how many tokens a row's positions are encoded the same beside any others."""
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None) or {}
    limits = [
        rope.get("original_max_position_embeddings") or text.max_position_embeddings
        for rope in ([ropes] if "rope_type" in ropes else ropes.values())  # one, or one a type of layer
        if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=math.inf)


class Prefix(NamedTuple):
    """What several prompts begin with.

    Attributes:
        length: tokens.
        layers: their keys and values by layer, [1, G, length, D] and [1, G, length, E].
    """

    length: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]


def fill_prefix(model: Any, ids: Sequence[int]) -> Prefix:
    """Run the tokens that prompts begin with, once for all of them."""
    cache = SlotCache(1, len(ids))
    fill(model, cache, 0, [tuple(ids)])
    return Prefix(len(ids), cache.layers)


def fill(
    model: Any,
    cache: SlotCache,
    first_row: int,
    prompts: Sequence[tuple[int, ...]],
    prefix: Prefix | None = None,
) -> None:
    """Run prompts, each distinct one once, and store their keys and values in the rows from `first_row` on.

    With a prefix, the prompts are what comes after it.
    """
    place = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    width = max(map(len, place))
    if not width:
        return
    start = prefix.length if prefix else 0
    cache.begin_prompts(first_row, upload([place[prompt] for prompt in prompts], model.device), start + width, prefix)
    padded = upload([[*prompt, *[0] * (width - len(prompt))] for prompt in place], model.device)
    positions = torch.arange(start, start + width, device=model.device).expand(len(place), -1)
    # The decoder alone: nobody needs the head's logits over prompts.
    model.get_decoder()(**_inputs(padded, positions), slots=cache)


def next_logits(
    model: Any, cache: SlotCache, token_N: torch.Tensor, position_N: torch.Tensor, num_columns: int
) -> torch.Tensor:
    """Add a token to each live row at its position, the last below `num_columns`; return the logits, float32 [N, V]."""
    cache.begin_step(position_N, num_columns)
    output = model(**_inputs(token_N[:, None], position_N[:, None]), slots=cache, logits_to_keep=1)
    return output.logits[:, -1].float()


def _inputs(token_NT: torch.Tensor, position_NT: torch.Tensor) -> dict[str, Any]:
    """Return inputs of a pass. The mask, which `keep_rule` drops, keeps transformers from asking the device for it."""
    mask_NT = torch.ones_like(token_NT)
    return {"input_ids": token_NT, "position_ids": position_NT, "attention_mask": mask_NT, "use_cache": False}


def upload(numbers: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Return whole numbers on a device, without waiting for what it does."""
    return torch.tensor(numbers).to(device, non_blocking=True)


class SlotCache:
    """Keys and values of up to `num_slots` rows for every layer, and where the next tokens go.

    Args:
        num_slots: rows that may be live at once.
        max_length: columns that no row outgrows; memory is taken as rows really grow.
    """

    def __init__(self, num_slots: int, max_length: int) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self.columns = 0
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.prompt_rows: tuple[int, torch.Tensor] | None = None
        self.prefix: Prefix | None = None
        self.positions_N = self._rows_N = torch.empty(0, dtype=torch.long)
        self.columns_read = 0
        self._masks: dict[MaskRule, torch.Tensor] = {}

    def begin_prompts(
        self, first_row: int, source_K: torch.Tensor, num_columns: int, prefix: Prefix | None = None
    ) -> None:
        """Send the next forward pass's keys and values into new rows.

        Args:
            first_row: the rows filled are `first_row … first_row + K - 1`.
            source_K: for each of them, the row of the forward pass that holds its prompt.
            num_columns: the padded prompt length, prefix included; columns past a row's own prompt are never read
                before they are overwritten.
            prefix: what comes before the pass's tokens in every row.
        """
        self.prompt_rows, self.prefix = (first_row, source_K), prefix
        self._reserve(num_columns)

    def begin_step(self, positions_N: torch.Tensor, num_columns: int) -> None:
        """Let the next forward pass add one token to each live row.

        Args:
            positions_N: the column of each row's new token; earlier columns are its past.
            num_columns: one more than the largest of them.
        """
        self.prompt_rows = None
        self.positions_N = positions_N
        self.columns_read = num_columns
        self._rows_N = torch.arange(len(positions_N), device=positions_N.device)
        self._masks.clear()
        self._reserve(self.columns_read)

    def move(self, source: list[int], target: list[int]) -> None:
        """Copy some rows over others, as far as the last step read."""
        source_K, target_K = upload([source, target], self.positions_N.device)
        for buffers in self.layers.values():
            for buffer in buffers:
                buffer[target_K, :, : self.columns_read] = buffer[source_K, :, : self.columns_read]

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new keys and values of a layer, [rows, G, tokens, D or E], and return those to attend to.

        They are the prefix's and the new ones in a pass over prompts, and views of all of the live rows',
        [N, G, T, D or E], in a step.
        """
        if layer not in self.layers:
            # Zeros, not empty memory: a masked column still enters the product with weight 0, and 0 × NaN is NaN.
            self.layers[layer] = (self._zeros(keys), self._zeros(values))
        buffers = self.layers[layer]
        if self.prompt_rows is not None:
            first, source_K = self.prompt_rows
            if self.prefix is not None:
                past_keys, past_values = (past.expand(len(keys), -1, -1, -1) for past in self.prefix.layers[layer])
                keys, values = torch.cat([past_keys, keys], 2), torch.cat([past_values, values], 2)
            for buffer, new in zip(buffers, (keys, values), strict=True):
                buffer[first : first + len(source_K), :, : new.shape[2]] = new[source_K]
            return keys, values
        for buffer, new in zip(buffers, (keys, values), strict=True):
            buffer[self._rows_N, :, self.positions_N] = new[:, :, 0]
        live, read = slice(0, len(self._rows_N)), slice(0, self.columns_read)
        return buffers[0][live, :, read], buffers[1][live, :, read]

    def mask(self, rule: MaskRule, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask [N, 1, 1, T] of the step: a row's own columns, as far as the model's rule has it."""
        if rule not in self._masks:
            column_T = torch.arange(self.columns_read, device=self.positions_N.device)
            is_seen_NT = rule.is_seen(0, 0, self.positions_N[:, None], column_T)
            mask_NT = torch.zeros_like(is_seen_NT, dtype=dtype).masked_fill_(~is_seen_NT, -math.inf)
            self._masks[rule] = mask_NT[:, None, None, :]
        return self._masks[rule]

    def _zeros(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_zeros(self.num_slots, like.shape[1], self.columns, like.shape[3])

    def _reserve(self, columns: int) -> None:
        if columns > self.columns:
            self.columns = min(self.max_length, max(columns, 2 * self.columns, _FIRST_COLUMNS))
            for layer, (keys, values) in self.layers.items():
                more = (0, 0, 0, self.columns - keys.shape[2])
                self.layers[layer] = (F.pad(keys, more), F.pad(values, more))


class MaskRule(NamedTuple):
    """What an attention layer may see, as the model says it; handed to `attend_slots` in the place of a mask.

    Attributes:
        is_seen: of batch, head, query's position and key's position; tensors of positions broadcast.
        window: up to how many tokens it is the causal rule; None for any number.
    """

    is_seen: Callable[..., torch.Tensor]
    window: int | None


def keep_rule(
    mask_function: Callable[..., torch.Tensor],
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> MaskRule:
    """Return the rule that transformers would make a mask of: here each row of a batch is at a place of its own."""
    if use_vmap:
        raise ValueError("its mask is not a function of positions alone")
    return MaskRule(mask_function, local_size if allow_is_causal_skip else 0)


def attend_slots(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    slots: SlotCache | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do, reading and extending the `slots` cache.

    Args:
        module: the attention layer; its `layer_idx` names the layer.
        query: [rows, H, tokens, D].
        key: [rows, G, tokens, D], of the new tokens alone.
        value: [rows, G, tokens, E].
        attention_mask: the `MaskRule` of the layer.
        scaling: factor of the scores; None is 1/sqrt(D).
        slots: the cache.
        softcap: not supported (Gemma 2).
        s_aux: not supported (gpt-oss).

    Returns:
        The output [rows, tokens, H, E], and no weights.

    Raises:
        ValueError: the layer does more than this.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError("its attention caps scores or has sinks")
    if slots is None or not isinstance(attention_mask, MaskRule):
        raise ValueError("its attention has a mask or a cache of its own")
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    keys, values = slots.extend(layer, key, value)
    if slots.prompt_rows is not None:
        output = _attend_prompts(query, keys, values, scaling, attention_mask)
    else:
        output = _attend_step(query, keys, values, slots.mask(attention_mask, query.dtype), scaling)
    return output.transpose(1, 2).contiguous(), None


def _attend_prompts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, rule: MaskRule
) -> torch.Tensor:
    """Attend by the rule. Padding is on the right, where no real token sees it: a causal rule over the new tokens alone
    needs no mask."""
    mask, num_past = None, key.shape[2] - query.shape[2]
    if num_past or (rule.window is not None and rule.window < key.shape[2]):
        token_P = torch.arange(key.shape[2], device=query.device)
        mask = rule.is_seen(0, 0, token_P[num_past:, None], token_P)
    width = value.shape[-1]
    # One width for keys and values (DeepSeek-V3 has two) lets torch pick its fused kernels, which never hold P × P
    # scores.
    value = F.pad(value, (0, key.shape[-1] - width))
    grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )
    return output[..., :width]


def _attend_step(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attend from one token a row; the query heads of one key head become rows of one product."""
    rows, heads, _, width = query.shape
    query = query.reshape(rows, keys.shape[1], heads // keys.shape[1], width)
    scores = torch.matmul(query * (scaling or width**-0.5), keys.transpose(2, 3)) + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, values).reshape(rows, heads, 1, values.shape[-1])


AttentionInterface.register(ATTENTION, attend_slots)
AttentionMaskInterface.register(ATTENTION, keep_rule)


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
