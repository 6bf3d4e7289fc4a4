"""The processes of one training: how many there are, what they exchange, and DeepSpeed ZeRO-2 among them.

ZeRO stage 2 (arXiv 1910.02054), without offload: every process holds the weights, and a share of gradients and
optimizer. DeepSpeed takes the optimizer step inside its `backward`, so the guard that stops before a bad step hangs on
the engine; DeepSpeed alone would silently skip such a step.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator

from ladle.errors import UserError

ZERO2_CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}},
    "steps_per_print": math.inf,
}
"""DeepSpeed's; `auto` takes the value of the TrainingArguments."""


def require_processes(wanted: int) -> None:
    """Check that a training runs in as many processes on this machine as its recipe says, each with a GPU if any has.

    Raises:
        UserError: it does not.
    """
    started = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if started != wanted:
        problem = f"the recipe sets {wanted} processes per machine and {started} were started"
        fix = f"set processes={started}, or start it with `ladle run`, which starts as many as the recipe sets"
        raise UserError(problem, fix)
    gpus = torch.cuda.device_count()
    if gpus and wanted > gpus:
        raise UserError(f"the recipe sets {wanted} processes and this machine has {gpus} GPUs", f"processes={gpus}")


def reduce_tensor(accelerator: Accelerator, tensor: torch.Tensor, reduction: Literal["sum", "mean"]) -> torch.Tensor:
    """Return the sum or mean of every process's `tensor`, of its shape, on every process."""
    return cast(torch.Tensor, accelerator.reduce(tensor, reduction=reduction))


def is_any(accelerator: Accelerator, flag: bool) -> bool:
    """Return on every process whether `flag` is true on at least one."""
    return bool(reduce_tensor(accelerator, torch.tensor(int(flag), device=accelerator.device), "sum").item())


def zero2_arguments(dtype: str) -> dict[str, Any]:
    """Return the TrainingArguments that make a training ZeRO-2, for weights of a dtype.

    Raises:
        UserError: there is one process only, or DeepSpeed is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        problem = "distributed: zero2 splits the optimizer among processes, and there is one"
        raise UserError(problem, "set processes to the number of GPUs, or distributed: ddp")
    if importlib.util.find_spec("deepspeed") is None:
        fix = "pip install --no-build-isolation 'ladle[deepspeed]', or set distributed: ddp"
        raise UserError("distributed: zero2 needs DeepSpeed, which is not installed", fix)
    if not torch.cuda.is_available():
        # Keeps DeepSpeed from compiling its shared-memory operator, which only inference uses: that takes 40 s and a
        # compiler, and a process killed meanwhile leaves a lock that hangs the next ones.
        importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    low = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}}.get(dtype, {})
    return {"deepspeed": ZERO2_CONFIG, **low}


def guard_engine(
    engine: Any, note_loss: Callable[[float], None], refuse_bad_step: Callable[[float | None], bool]
) -> None:
    """Let each loss be noted before its backward, and each optimizer step be refused before it is taken.

    Args:
        engine: the DeepSpeedEngine.
        note_loss: is given every microbatch's loss.
        refuse_bad_step: is given the gradient norm over all processes (None under fp16, where an overflow is expected
            and DeepSpeed lowers the loss scale); raises to stop.
    """
    plain_backward, plain_step = engine.backward, engine.step

    def backward(loss: torch.Tensor, **kwargs: Any) -> Any:
        note_loss(loss.item())
        return plain_backward(loss, **kwargs)

    def step(*args: Any, **kwargs: Any) -> Any:
        refuse_bad_step(None if engine.fp16_enabled() else float(engine.optimizer.scaled_global_norm()))
        return plain_step(*args, **kwargs)

    engine.backward, engine.step = backward, step
