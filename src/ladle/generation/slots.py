"""A key/value cache of independent rows, and the attention over it.

transformers' own caches keep every row of a batch equally long; here each row has its own length, so a finished row
can leave and a new one take its place while the others go on. Live rows are always the rows 0…N-1, which makes the
live part of every buffer a view. A row's token at position p sits in column p.

The cache is filled from inside attention (transformers' `AttentionInterface`), after the model has made keys and
values of the new tokens alone. So one cache serves every architecture, and DeepSeek-V3's latents are expanded once a
token instead of once a token and step.

Shapes: N live rows, H query heads, G key/value heads, T columns read, P prompt columns, D key width, E value width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from ladle.errors import UserError

ATTENTION = "ladle_slots"
_FIRST_COLUMNS = 64


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
        self.positions_N = torch.empty(0, dtype=torch.long)
        self.columns_read = 0
        self._masks: dict[int | None, torch.Tensor] = {}
        self._rows_N = torch.empty(0, dtype=torch.long)

    def begin_prompts(self, first_row: int, source_K: torch.Tensor, num_columns: int) -> None:
        """Send the next forward pass's keys and values into new rows.

        Args:
            first_row: the rows filled are `first_row … first_row + K - 1`.
            source_K: for each of them, the row of the forward pass that holds its prompt.
            num_columns: the padded prompt length; columns past a row's own prompt are never read before they are
                overwritten.
        """
        self.prompt_rows = (first_row, source_K)
        self._reserve(num_columns)

    def begin_step(self, positions_N: torch.Tensor, columns_read: int) -> None:
        """Let the next forward pass add one token to each live row.

        Args:
            positions_N: the column of each row's new token; earlier columns are its past.
            columns_read: one more than the largest of them.
        """
        self.prompt_rows = None
        self.positions_N = positions_N
        self.columns_read = columns_read
        self._rows_N = torch.arange(len(positions_N), device=positions_N.device)
        self._masks.clear()
        self._reserve(columns_read)

    def move(self, source: list[int], target: list[int], num_columns: int) -> None:
        """Copy the first columns of some rows over others."""
        for keys, values in self.layers.values():
            keys[target, :, :num_columns] = keys[source, :, :num_columns]
            values[target, :, :num_columns] = values[source, :, :num_columns]

    def write_prompts(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the keys and values, [rows, G, P, D or E], of a forward pass over prompts."""
        assert self.prompt_rows is not None
        first, source_K = self.prompt_rows
        for buffer, new in zip(self._buffers(layer, keys, values), (keys, values), strict=True):
            buffer[first : first + len(source_K), :, : new.shape[2]] = new[source_K]

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a token of each live row, [N, G, 1, D or E], and return views of all keys and values, [N, G, T, …]."""
        read = []
        for buffer, new in zip(self._buffers(layer, keys, values), (keys, values), strict=True):
            buffer[self._rows_N, :, self.positions_N] = new[:, :, 0]
            read.append(buffer[: len(self._rows_N), :, : self.columns_read])
        return read[0], read[1]

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask [N, 1, 1, T] of the step: a row sees its own columns, or the last `window`."""
        if window not in self._masks:
            column_T = torch.arange(self.columns_read, device=self.positions_N.device)
            is_seen_NT = column_T <= self.positions_N[:, None]
            if window is not None:
                is_seen_NT &= column_T > self.positions_N[:, None] - window
            mask_NT = torch.zeros_like(is_seen_NT, dtype=dtype).masked_fill_(~is_seen_NT, float("-inf"))
            self._masks[window] = mask_NT[:, None, None, :]
        return self._masks[window]

    def _buffers(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self.layers:
            self.layers[layer] = (self._zeros(keys), self._zeros(values))
        return self.layers[layer]

    def _zeros(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, not empty memory: a masked column still enters the product with weight 0, and 0 × NaN is NaN.
        return like.new_zeros(self.num_slots, like.shape[1], self.columns, like.shape[3])

    def _reserve(self, columns: int) -> None:
        if columns <= self.columns:
            return
        self.columns = min(self.max_length, max(columns, 2 * self.columns, _FIRST_COLUMNS))
        for layer, buffers in self.layers.items():
            grown = tuple(F.pad(buffer, (0, 0, 0, self.columns - buffer.shape[2])) for buffer in buffers)
            self.layers[layer] = (grown[0], grown[1])


def attend_slots(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
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
        attention_mask: none; rows are kept apart by the cache.
        scaling: factor of the scores; None is 1/sqrt(D).
        sliding_window: tokens that a token sees, itself included; None is all.
        slots: the cache.
        softcap: not supported (Gemma 2).
        s_aux: not supported (gpt-oss).

    Returns:
        The output [rows, tokens, H, E], and no weights.

    Raises:
        UserError: the model's attention does more than this one.
    """
    if slots is None or attention_mask is not None or softcap is not None or s_aux is not None:
        raise UserError(
            f"{type(module).__name__} needs an attention that this generator does not have "
            "(capped scores, as in Gemma 2, or attention sinks, as in gpt-oss)",
            "use sampling.backend=vllm",
        )
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    if slots.prompt_rows is not None:
        slots.write_prompts(layer, key, value)
        output = _attend_prompts(query, key, value, scaling, sliding_window)
    else:
        keys, values = slots.append(layer, key, value)
        output = _attend_step(query, keys, values, slots.mask(sliding_window, query.dtype), scaling)
    return output.transpose(1, 2).contiguous(), None


def _attend_prompts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Attend causally. Padding is on the right, where no real token sees it, so no mask is needed."""
    mask = None
    if window is not None and window < query.shape[2]:
        token_P = torch.arange(query.shape[2], device=query.device)
        mask = (token_P <= token_P[:, None]) & (token_P > token_P[:, None] - window)
    width = value.shape[-1]
    # One width for keys and values (DeepSeek-V3 has two) lets torch pick its fused kernels, which never hold P × P
    # scores.
    value = F.pad(value, (0, key.shape[-1] - width))
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
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
