"""Attention whose values are narrower than its queries (DeepSeek's MLA) at the speed of the fused kernel.

PyTorch's fused attention takes one head size; where queries and values differ in theirs, `scaled_dot_product_attention`
falls back to writing out all scores, several times slower. Values padded with zeros give the same output followed by
zeros, which are cut off again: transformers does this for flash attention, and here it is done for sdpa.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PADDED_SDPA = "padded_sdpa"


def padded_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return transformers' sdpa attention, of shape (batch, positions, heads, value size)."""
    width = value.shape[-1]
    value = F.pad(value, (0, query.shape[-1] - width))
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output[..., :width], None


AttentionInterface.register(PADDED_SDPA, padded_sdpa)
AttentionMaskInterface.register(PADDED_SDPA, sdpa_mask)


def use_fused_attention(model: PreTrainedModel) -> None:
    """Let a model that uses sdpa and has narrower values than queries pad them."""
    config = model.config
    query, value = getattr(config, "qk_head_dim", None), getattr(config, "v_head_dim", None)
    if config._attn_implementation == "sdpa" and query is not None and value is not None and value < query:
        model.set_attn_implementation(PADDED_SDPA)
