"""What a training would take of GPUs that are not here: its FLOPs, at the share of the peak that large trainings reach.

A rehearsal without a GPU cannot time one. FLOPs are those of `training.speed`: 6 for each active weight of a token,
and attention. Gradient checkpointing adds a forward pass, and KTO one for z0. Generation is not reckoned: it waits for
memory, not for arithmetic.
"""

from __future__ import annotations

from typing import Any

from ladle.doctor.trainings import Training
from ladle.kto.config import KtoConfig
from ladle.training.progress import PEAK_BF16_FLOPS, flops_per_token

GPU = "H100"
SHARE_OF_PEAK = 0.4
"""Llama 3's trainings reached 38 to 43 % of this GPU's bf16 peak (arXiv 2407.21783, table 4)."""
FORWARD = 1 / 3
"""A forward pass, in forward and backward passes together."""


def gpu_hours(training: Training, times: int, config: dict[str, Any]) -> float | None:
    """Return the hours of one GPU that a training takes; None where its steps are not known.

    Args:
        training: of rows that are full: KTO's are shorter, so that its hours are an upper bound.
        times: how often it is run.
        config: fields of the model's config.json.
    """
    if training.steps is None:
        return None
    passes = 1.0
    passes += FORWARD if training.arguments.get("gradient_checkpointing") else 0.0
    passes += FORWARD if isinstance(training.config, KtoConfig) and training.config.estimates_kl else 0.0
    tokens = times * training.steps * training.rows_per_step * training.length
    flops = tokens * passes * flops_per_token(_shape(config), training.length)
    return flops / (SHARE_OF_PEAK * PEAK_BF16_FLOPS[GPU]) / 3600


def _shape(config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
