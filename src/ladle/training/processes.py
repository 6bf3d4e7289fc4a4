"""What the processes of one training tell each other."""

from __future__ import annotations

import os
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from torch import distributed

from ladle.errors import UserError


def require_processes(wanted: int) -> None:
    """Check that a training runs in as many processes on this machine as its recipe says, each with a GPU if any has.

    Raises:
        UserError: it does not.
    """
    started = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if started != wanted:
        raise UserError(
            f"the recipe asks for {wanted} processes a machine and {started} were started",
            f"set processes={started}, or start it by `ladle run`, which starts as many as it says",
        )
    gpus = torch.cuda.device_count()
    if gpus and wanted > gpus:
        raise UserError(f"the recipe asks for {wanted} processes and this machine has {gpus} GPUs", f"processes={gpus}")


def gather_objects(accelerator: Accelerator, value: Any) -> list[Any]:
    """Return every process's `value`, in rank order, on every process."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Any] = [None] * accelerator.num_processes
    distributed.all_gather_object(values, value)
    return values


def reduce_tensor(accelerator: Accelerator, tensor: torch.Tensor, reduction: Literal["sum", "mean"]) -> torch.Tensor:
    """Return the sum or mean of every process's `tensor`, of its shape, on every process."""
    return cast(torch.Tensor, accelerator.reduce(tensor, reduction=reduction))


def is_any(accelerator: Accelerator, flag: bool) -> bool:
    """Return on every process whether `flag` is true on at least one."""
    if accelerator.num_processes == 1:
        return flag
    return bool(reduce_tensor(accelerator, torch.tensor(int(flag), device=accelerator.device), "sum").item())
