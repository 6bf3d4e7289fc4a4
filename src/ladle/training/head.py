"""What the output heads of pretraining and KTO share: products in float32, and how many tokens' logits a GPU holds.

Matrices of bfloat16 or float16 are multiplied as they are and summed in float32. On a GPU the product stays so; a CPU
rounds it to their dtype, since it has no such kernel.

Shape suffixes: N tokens, C tokens of a block, D hidden size, V vocabulary.
"""

from __future__ import annotations

from contextvars import ContextVar

import torch

GPU_TOKENS, GPU_ELEMENTS = 4096, 2**29
"""Most tokens of a block on a GPU, and most logits (2 GiB in float32; half as much again in bfloat16). A block's
products should outweigh reading and writing the weight's gradient: for 4,096 tokens that takes a fifteenth of their
time on an H100, estimated and not timed."""
TRACED_FOR_GPU: ContextVar[bool] = ContextVar("traced_for_gpu", default=False)
"""Whether blocks on a CPU have a GPU's size: in the memory estimate of a training that runs on one."""


def tokens_at_once(weight_VD: torch.Tensor, on_cpu: int, copies: int = 1) -> int:
    """Return how many tokens' logits are computed at once.

    Args:
        weight_VD: the head.
        on_cpu: how many a CPU takes.
        copies: tensors of the logits' size that are alive beside each other.
    """
    if not (weight_VD.is_cuda or TRACED_FOR_GPU.get()):
        return on_cpu
    return max(1, min(GPU_TOKENS, GPU_ELEMENTS // copies // len(weight_VD)))


def in_one_dtype(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in the dtype to multiply them in: the weight's, or autocast's, once and not for every block."""
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    return hidden_ND.to(dtype), weight_VD.to(dtype)


def room_for(like_CV: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return memory of a shape for values in a dtype: a tensor's own, or new rows that begin at multiples of 16 bytes.

    A GPU multiplies others by slower kernels, and a vocabulary of 151,851 would give such ones.
    """
    if like_CV.dtype == dtype:
        return like_CV
    num_rows, width = like_CV.shape
    padded = -(-width // 8) * 8 if like_CV.is_cuda else width
    return like_CV.new_empty(num_rows, padded, dtype=dtype)[:, :width]


def multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write `left @ right` into `out`, which is as wide as they are or in float32."""
    if out.dtype == left.dtype:
        return torch.mm(left, right, out=out)
    if out.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(left @ right)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to `total`, which is as wide as they are or in float32."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
