"""Attention of packed rows at the speed of PyTorch's fused kernel, where `attn_implementation` is sdpa.

Two things keep transformers' sdpa from it:

- DeepSeek's MLA has values narrower than its queries, and the fused kernel takes one head size; where they differ, all
  scores are written out. Values padded with zeros give the same output followed by zeros, which are cut off again
  (transformers does this for flash attention).
- A packed row's documents are kept apart by a mask of all positions by all. Its scores outside documents are computed
  and thrown away. On a CPU a row is therefore cut between documents into runs of at least `RUN` tokens, each attended
  to by itself under its part of the mask. (A GPU keeps one call a row: a kernel a run has not been timed there.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED_SDPA = "packed_sdpa"
RUN = 256
"""Least tokens of a run but the last: shorter ones cost more in calls than they save in scores."""


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return transformers' sdpa attention, of shape (batch, positions, heads, value size).

    Args:
        module: the attention layer.
        query: (batch, heads, positions, size); key and value alike, of as many heads or fewer, the value's own size.
        attention_mask: bool, (batch, 1, positions, positions), causal; a position that may not see the one before it
            begins a document and sees none before.
        **kwargs: as sdpa's.
    """
    width = value.shape[-1]
    value = F.pad(value, (0, max(0, query.shape[-1] - width)))
    if attention_mask is None or query.device.type != "cpu" or query.shape[2] <= RUN:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output[..., :width], None
    masks = attention_mask.expand(query.shape[0], -1, -1, -1)
    rows = zip(query.split(1), key.split(1), value.split(1), masks.split(1), strict=True)
    outputs = [_row_by_runs(module, *row, **kwargs) for row in rows]
    return torch.cat(outputs)[..., :width], None


def _row_by_runs(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    **kwargs: Any,
) -> torch.Tensor:
    sizes = run_sizes(mask[0, 0])
    runs = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs, start = [], 0
    for size, (query_run, key_run, value_run) in zip(sizes, runs, strict=True):
        places = slice(start, start + size)
        part = mask[:, :, places, places]
        outputs.append(sdpa_attention_forward(module, query_run, key_run, value_run, part, **kwargs)[0])
        start += size
    return torch.cat(outputs, dim=1)


def run_sizes(mask_TT: torch.Tensor) -> list[int]:
    """Return the lengths of a row's runs: whole documents, `RUN` tokens or more but for the last.

    Args:
        mask_TT: what each position sees, bool, (positions, positions).
    """
    begins = (~mask_TT.diagonal(-1)).nonzero()[:, 0] + 1
    sizes, start = [], 0
    for place in begins.tolist():
        if place - start >= RUN:
            sizes.append(place - start)
            start = place
    return [*sizes, mask_TT.shape[0] - start]


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def use_fused_attention(model: PreTrainedModel) -> None:
    """Let a model that uses sdpa take packed rows fast."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PACKED_SDPA)
