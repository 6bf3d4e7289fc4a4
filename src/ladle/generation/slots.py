"""Keys and values of rows of different lengths, and the attention that reads them, for any transformers model.

transformers' own caches keep every row of a batch equally long; in `SlotCache` each row has its own length. It is
filled from inside attention (transformers' `AttentionInterface`), after the model has made keys and values of the new
tokens alone, and masked by the model's own rule (`AttentionMaskInterface`). So one cache serves every architecture that
attends so, and DeepSeek-V3's latents are expanded once a token instead of once a token and step. The transformers
library's own continuous batching is not used: for DeepSeek-V3 it returns no tokens and no error (5.23).

`fill` runs prompts into rows, `next_logits` one token of each row. Both need the model to attend by `ATTENTION`.

Shapes: N live rows (always the first N slots, so that the live part of every buffer is a view), V vocabulary, H query
heads, G key/value heads, T columns read, P prompt columns, K prompts' rows, D key width, E value width. A row's token
at position p is in column p of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "ladle_slots"
_FIRST_COLUMNS = 64


class Prefix(NamedTuple):
    """What several prompts begin with.

    Attributes:
        length: tokens.
        layers: their keys and values by layer, [1, G, length, D] and [1, G, length, E].
    """

    length: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]]


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
