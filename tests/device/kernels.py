"""What GPUs have and CPUs lack, in plain PyTorch: attention to sequences of variable length, by the kernels' own terms.

Arguments are refused where CUDA's kernel refuses them (pytorch, ATen/native/transformers/cuda/flash_attn/flash_api.cpp,
`mha_varlen_fwd`), in its words. What it would not compute is not a number here: positions past `max_q`.

Shapes: T tokens of all sequences laid end to end, H heads of queries, K of keys and values, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils

LOW = (torch.bfloat16, torch.float16)
BLOCK = 128
"""Positions that one block of the kernel takes at most."""


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
    dtypes: tuple[torch.dtype, ...] = LOW,
) -> Tensor:
    """Return the attention of each sequence by itself, (T, H, D), as `torch.nn.attention.varlen.varlen_attn`.

    Args:
        query: (T, H, D), and so on as torch's.
        dtypes: what it takes; CUDA's kernel takes no float32.
    """
    assert return_aux is seqused_k is block_table is num_splits is None
    assert cu_seq_k is not None
    (tokens, heads, size), kv_heads = query.shape, key.shape[1]
    refuse_unless(query.dtype in dtypes, "FlashAttention only support fp16 and bf16 data type")
    refuse_unless(query.dtype == key.dtype == value.dtype, "query and key must have the same dtype")
    refuse_unless(cu_seq_q.dtype == cu_seq_k.dtype == torch.int32, "cu_seqlens_q must have dtype int32")
    refuse_unless(cu_seq_q.is_contiguous() and cu_seq_k.is_contiguous(), "cu_seqlens_q must be contiguous")
    refuse_unless(all(states.stride(-1) == 1 for states in (query, key, value)), "contiguous last dimension")
    refuse_unless(size <= 256, "FlashAttention forward only supports head dimension at most 256")
    refuse_unless(size % 8 == 0, "head_size must be a multiple of 8, this is ensured by padding!")
    refuse_unless(key.shape == value.shape == (tokens, kv_heads, size), "k must have shape (total_k, num_heads_k, D)")
    refuse_unless(heads == kv_heads or enable_gqa, "Expect query and key/value to have the same number of heads")
    refuse_unless(isinstance(max_q, int) and isinstance(max_k, int), "max_q and max_k are numbers of the host")
    key, value = (states.repeat_interleave(heads // kv_heads, dim=1) for states in (key, value))
    place_T = torch.arange(tokens, device=query.device)
    sequence_T = torch.bucketize(place_T, cu_seq_q[1:], right=True)
    place_T = place_T - cu_seq_q[sequence_T]
    back_TT = place_T[:, None] - place_T[None]
    left, right = window_size
    sees_TT = sequence_T[:, None] == sequence_T[None]
    sees_TT &= (back_TT <= left) | torch.tensor(left < 0)
    sees_TT &= (back_TT >= -right) | torch.tensor(right < 0)
    scores_HTT = torch.einsum("thd,shd->hts", query.float(), key.float()) * (size**-0.5 if scale is None else scale)
    weights_HTT = scores_HTT.masked_fill(~sees_TT, float("-inf")).softmax(-1)
    output_THD = torch.einsum("hts,shd->thd", weights_HTT, value.float()).to(query.dtype)
    reached = -(-max_q // BLOCK) * BLOCK, -(-max_k // BLOCK) * BLOCK
    return output_THD.masked_fill((place_T >= min(reached))[:, None, None], float("nan"))


def refuse_unless(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


@contextmanager
def flash_attention(dtypes: tuple[torch.dtype, ...] = LOW) -> Any:
    """Let transformers find the package flash_attn, with borders and without."""

    def by_borders(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **how: Any) -> Tensor:
        return varlen_attn(
            *(q, k, v, cu_seqlens_q.int(), cu_seqlens_k.int(), how["max_q"], how["max_k"]),
            scale=how["scale"], window_size=(-1, 0), enable_gqa=True, dtypes=dtypes,
        )  # fmt: skip

    def by_rows(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        ends = torch.arange(0, q.shape[0] * q.shape[1] + 1, q.shape[1], dtype=torch.int32, device=q.device)
        longest = {"max_q": q.shape[1], "max_k": q.shape[1]}
        return by_borders(*(x.flatten(0, 1) for x in (q, k, v)), ends, ends, **how | longest).view(q.shape)

    def options(*, is_causal: bool, softmax_scale: float, **others: Any) -> dict[str, Any]:
        assert is_causal
        assert others["softcap"] is others["sliding_window"] is None
        return {"scale": softmax_scale, "max_q": others.get("max_seqlen_q"), "max_k": others.get("max_seqlen_k")}

    functions: tuple[Callable[..., Any] | None, ...] = (by_rows, by_borders, None, None, None)
    found = (functions, (options, None))
    with mock.patch.object(modeling_flash_attention_utils, "lazy_import_flash_attention", return_value=found):
        yield


def varlen_in(*dtypes: torch.dtype) -> Callable[..., Tensor]:
    """Return `varlen_attn` for dtypes."""
    return partial(varlen_attn, dtypes=dtypes)
