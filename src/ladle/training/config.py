"""Recipe sections of the two training stages."""

from __future__ import annotations

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
    trainer: TrainerArguments = TrainerArguments()
    """transformers.TrainingArguments, by its own names."""


class PretrainConfig(TrainingConfig):
    """Continued pretraining on a mixture."""

    data: str | None = location(None)
    """The mixture: `mix`, or the path of one; unset is the recipe's mixture."""
    router_bias_update_rate: float = Field(1e-3, ge=0)
    """How far a router's bias moves towards balance in a step (MoE only; DeepSeek-V3's and OpenSeek's); 0 leaves it."""


class KtoConfig(TrainingConfig):
    """Kahneman-Tversky alignment (arXiv 2402.01306).

    Names and defaults are those of TRL's KTOConfig where the meaning is. `model` is the policy's start and the
    reference.
    """

    beta: float = Field(0.1, gt=0)
    """KTO's β: how strongly the policy is held to the reference."""
    desirable_weight: float | Literal["auto"] = 1.0
    """KTO's λ_D; `auto` sets λ_D n_D = λ_U n_U, the lower end of the paper's range [1, 4/3]."""
    undesirable_weight: float = Field(1.0, gt=0)
    """KTO's λ_U."""
    max_length: int = Field(1024, gt=0)
    """Prompt and completion together, in tokens; a longer completion loses its end, a prompt is never cut."""
    allow_single_label: bool = False
    """Train although every label is the same: z0 then grows with the reward and the policy drifts as unbounded SFT."""
    keep_models: int | None = Field(0, ge=0)
    """Checkpoints past `trainer.save_total_limit` to keep as models alone; unset keeps all."""
