"""Generation with a transformers model: a loop over slots that refills itself.

Each pass of the loop adds one token to every live row. A finished row is handed out at once and its slot goes to the
next request, so the batch stays full until requests run out, and then shrinks. Prompts are prefilled without their
last token, which joins the other rows' next step: every sampled token comes from the same step. Equal prompts are
prefilled once.

The transformers library's own continuous batching is not used: for DeepSeek-V3 it returns no tokens and no error
(5.23).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ladle.errors import UserError
from ladle.generation.request import Request, Sample, warn_beyond_context
from ladle.generation.rows import Rows
from ladle.generation.slots import ATTENTION, SlotCache
from ladle.generation.stopping import stop_token_ids
from ladle.models.load import load_model

_REFILL_SHARE = 8
"""Slots are refilled when 1/8 of them are free: a prefill is a forward pass, so it has to serve several rows."""

_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
_CACHED_LAYERS = ("full_attention", "sliding_attention")


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

    Raises:
        UserError: the architecture keeps state that the slot cache cannot hold.
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
        is_folder = isinstance(model, (str, Path))
        loaded: Any = load_model(Path(model), dtype=dtype) if is_folder else model
        self.model = loaded.to(_device(worker)) if is_folder else loaded
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.prefill_tokens = prefill_tokens
        _check_architecture(self.model.config)

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield a sample for each request as it finishes; the longest are started first."""
        # The longest first, so that none of them is left to run alone at the end; equal prompts side by side.
        queue = sorted(requests, key=lambda request: (request.max_length, request.prompt_ids), reverse=True)
        if not queue:
            return
        warn_beyond_context(queue[0].max_length, getattr(self.model.config, "max_position_embeddings", None))
        with _slot_attention(self.model):
            yield from self._run(queue)

    def _run(self, queue: list[Request]) -> Iterator[Sample]:
        rows = self._empty_rows(queue)
        free_enough = max(1, rows.num_slots // _REFILL_SHARE)
        queue.reverse()  # taken from the end
        while queue or rows.live:
            free = rows.num_slots - rows.live
            if queue and free >= free_enough:
                self._admit(rows, [queue.pop() for _ in range(min(free, len(queue)))])
            yield from self._step(rows)

    @torch.inference_mode()
    def _empty_rows(self, queue: list[Request]) -> Rows:
        num_slots = min(self.batch_size, len(queue))
        cache = SlotCache(num_slots, max_length=queue[0].max_length)
        stop_ids = stop_token_ids(self.model.generation_config.eos_token_id, self.tokenizer)
        longest_answer = max(request.max_new_tokens for request in queue)
        return Rows(cache, self.tokenizer, stop_ids, self.model.config.vocab_size, longest_answer, self.model.device)

    @torch.inference_mode()
    def _step(self, rows: Rows) -> list[Sample]:
        """Add one token to each live row and return the samples that it finished."""
        rows.begin_step()
        output = self.model(
            input_ids=rows.tokens_N1,
            position_ids=rows.positions_N1,
            use_cache=False,
            slots=rows.cache,
            logits_to_keep=1,
        )
        self._check_layers(rows.cache)
        rows.advance(output.logits[:, -1].float())
        return rows.retire()

    @torch.inference_mode()
    def _admit(self, rows: Rows, requests: list[Request]) -> None:
        """Prefill the prompts of new rows, each but for its last token, and make the rows live."""
        first_row = rows.live
        for group in _prefill_groups(requests, self.prefill_tokens):
            self._prefill(rows.cache, first_row, [tuple(request.prompt_ids[:-1]) for request in group])
            first_row += len(group)
        rows.admit(requests)

    def _prefill(self, cache: SlotCache, first_row: int, prompts: list[tuple[int, ...]]) -> None:
        """Run each distinct prompt once and store it in every row that starts with it."""
        place = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        width = max(map(len, place))
        if width == 0:
            return
        device = self.model.device
        cache.begin_prompts(first_row, torch.tensor([place[prompt] for prompt in prompts], device=device), width)
        padded = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in place], device=device)
        positions = torch.arange(width, device=device).expand(len(place), -1)
        # The decoder alone: nobody needs the head's logits over prompts.
        self.model.get_decoder()(input_ids=padded, position_ids=positions, use_cache=False, slots=cache)

    def _check_layers(self, cache: SlotCache) -> None:
        if len(cache.layers) != self.model.config.num_hidden_layers:
            raise UserError(
                f"{type(self.model).__name__} has {self.model.config.num_hidden_layers} layers, "
                f"but only {len(cache.layers)} of them attend through transformers' attention interface",
                "use sampling.backend=vllm",
            )


def _device(worker: int) -> torch.device:
    count = torch.cuda.device_count()
    return torch.device("cuda", worker % count) if count else torch.device("cpu")


def _prefill_groups(requests: list[Request], max_tokens: int) -> Iterator[list[Request]]:
    """Split requests, in order, into runs whose distinct prompts fit `max_tokens` when padded to the longest."""
    group: list[Request] = []
    distinct: set[tuple[int, ...]] = set()
    longest = 0
    for request in requests:
        prompt = tuple(request.prompt_ids)
        longest = max(longest, len(prompt))
        if group and len(distinct | {prompt}) * longest > max_tokens:
            yield group
            group, distinct, longest = [], set(), len(prompt)
        group.append(request)
        distinct.add(prompt)
    if group:
        yield group


def _check_architecture(config: Any) -> None:
    other = set(getattr(config, "layer_types", None) or ()) - set(_CACHED_LAYERS)
    rope = getattr(config, "rope_parameters", None) or {}
    if other:
        raise UserError(
            f"layers of type {', '.join(sorted(other))} keep a state that this generator cannot hold",
            "use sampling.backend=vllm",
        )
    if rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
        raise UserError(
            f"rope_type {rope['rope_type']!r} makes a sample depend on the longest one in its batch",
            "use sampling.backend=vllm",
        )


@contextmanager
def _slot_attention(model: Any) -> Iterator[None]:
    """Let the model attend through the slot cache, in evaluation mode, and put both back after."""
    before, was_training = model.config._attn_implementation, model.training
    model.set_attn_implementation(ATTENTION)
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)
