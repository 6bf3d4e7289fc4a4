"""Recipe sections of training; KTO's is in `kto.config`."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from ladle.config import Config, execution, location
from ladle.training.arguments import TrainerArguments

Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


Distributed = Literal["ddp", "zero2"]


class TrainingConfig(Config):
    """What both kinds of training have."""

    model: str | None = location(None)
    """The model to start from: a name of the recipe's (`base`, `pretrained`, `soup`, `kto`), or a path; unset is the
    latest one."""
    dtype: Dtype = "float32"
    """Dtype of the weights in memory and on disk. Mixed precision (`trainer.bf16`) is apart from it."""
    attn_implementation: Attention = "sdpa"
    distributed: Distributed = "ddp"
    """How processes share the work. `ddp`: each holds all. `zero2`: DeepSpeed ZeRO stage 2 without offload, gradients
    and optimizer split among them; `trainer.bf16` or `dtype: bfloat16` then means bfloat16 weights, which are what is
    saved, and float32 ones in the optimizer."""
    processes: int = execution(1, ge=1)
    """Processes on this machine, one GPU each where there are GPUs; started with torchrun."""
    keep_models: int | None = Field(None, ge=0)
    """Checkpoints past `trainer.save_total_limit` to keep as models alone, for the soup; unset keeps all."""
    nan_policy: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does before the optimizer uses it: end the run with exit code 1, or
    leave the step out, `nan_max_skips` times."""
    nan_max_skips: int = Field(10, ge=1)
    trainer: TrainerArguments = TrainerArguments()
    """transformers.TrainingArguments, by its own names."""

    @property
    def max_skipped_steps(self) -> int:
        """How many steps may be left out; 0 stops at the first."""
        return self.nan_max_skips if self.nan_policy == "skip" else 0

    @property
    def batch_size(self) -> int:
        """Rows of a microbatch."""
        return int(self.trainer.get("per_device_train_batch_size"))

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, over all processes of one machine."""
        return self.batch_size * int(self.trainer.get("gradient_accumulation_steps")) * self.processes

    @property
    def max_steps(self) -> int | None:
        """Optimizer steps that the recipe sets; None where the epochs decide."""
        steps = int(self.trainer.get("max_steps"))
        return steps if steps > 0 else None

    @property
    def num_epochs(self) -> float:
        """Passes over the data, where the recipe sets no `max_steps`."""
        return float(self.trainer.get("num_train_epochs"))

    def num_steps(self, rows: int | None) -> int | None:
        """Return the optimizer steps that training on `rows` rows takes; None where they depend on unknown rows."""
        if self.max_steps is not None or rows is None:
            return self.max_steps
        return math.ceil(self.num_epochs * math.ceil(rows / self.rows_per_step))


class PretrainConfig(TrainingConfig):
    """Continued pretraining on a mixture."""

    data: str | None = location(None)
    """The mixture: `mix`, or the path of one; unset is the recipe's mixture."""
    router_bias_update_rate: float = Field(1e-3, ge=0)
    """How far a router's bias moves towards balance in a step (MoE only; DeepSeek-V3's and OpenSeek's); 0 leaves it."""
    sequence_aux_loss: float = Field(0.0, ge=0)
    """Weight of the sequence-wise balance loss beside it (MoE only; 1e-4 in DeepSeek-V3 and OpenSeek); 0 is none."""
