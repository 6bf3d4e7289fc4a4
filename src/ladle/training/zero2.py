"""DeepSpeed ZeRO stage 2 (arXiv 1910.02054): every process holds the weights, and a share of gradients and optimizer.

Without offload. DeepSpeed takes the optimizer step inside its `backward`, so the guard that stops before a bad step
hangs on the engine; DeepSpeed alone would skip such a step and go on without a word.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from ladle.errors import UserError
from ladle.training.outcome import optimizer_tensors

CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}},
    "steps_per_print": math.inf,
}
"""`auto` takes the value of the TrainingArguments."""


DEEPSPEED_ENGINE = "DeepSpeedEngine"


def zero2_arguments(dtype: str) -> dict[str, Any]:
    """Return the TrainingArguments that make a training ZeRO-2, for weights of a dtype.

    Raises:
        UserError: there is one process only, or DeepSpeed is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise UserError(
            "distributed: zero2 splits the optimizer among processes, and there is one",
            "set processes to the number of GPUs, or distributed: ddp",
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "distributed: zero2 needs DeepSpeed, which is not installed",
            "pip install --no-build-isolation 'ladle[deepspeed]', or set distributed: ddp",
        )
    if not torch.cuda.is_available():
        _skip_shared_memory_op()
    low = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}}.get(dtype, {})
    return {"deepspeed": CONFIG, **low}


def _skip_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory operator on a CPU: only inference uses it.

    It takes 40 s and a compiler, and a process killed meanwhile leaves a lock that hangs the next ones.
    """
    importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False


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


def partition_tensors(zero_optimizer: Any) -> dict[str, torch.Tensor]:
    """Return this process's share of float32 weights and optimizer state, by name."""
    shares = enumerate(zero_optimizer.single_partition_of_fp32_groups)
    return {f"weights.{index}": share for index, share in shares} | optimizer_tensors(zero_optimizer.optimizer)
