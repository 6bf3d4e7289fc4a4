"""What the processes of one training tell each other."""

from __future__ import annotations

from typing import Literal, cast

import torch
from accelerate import Accelerator


def reduce_tensor(accelerator: Accelerator, tensor: torch.Tensor, reduction: Literal["sum", "mean"]) -> torch.Tensor:
    """Return the sum or mean of every process's `tensor`, of its shape, on every process."""
    return cast(torch.Tensor, accelerator.reduce(tensor, reduction=reduction))


def is_any(accelerator: Accelerator, flag: bool) -> bool:
    """Return on every process whether `flag` is true on at least one."""
    if accelerator.num_processes == 1:
        return flag
    return bool(reduce_tensor(accelerator, torch.tensor(int(flag), device=accelerator.device), "sum").item())
