"""Keeping experts equally loaded without an auxiliary loss.

After each optimizer step every router's bias moves towards the mean load,

    b_e ← b_e + rate · sign(mean load - load_e)

as in DeepSeek-V3 (arXiv 2412.19437, §2.1.2) and its source (arXiv 2408.15664); the rate of 1e-3 is DeepSeek-V3's and
OpenSeek's. The bias only chooses experts, it never weighs them, and it carries no gradient. transformers' DeepSeek-V3
leaves it untouched in training.

Loads are counted over all microbatches of a step and all processes. Under gradient checkpointing a forward may run
twice; that doubles every count alike and changes no sign.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ladle.training.processes import reduce_tensor

BIAS = "e_score_correction_bias"


class ExpertLoad:
    """Counts, for each router with a bias, how many tokens each expert was given since the last `take`."""

    def __init__(self, model: nn.Module) -> None:
        self.routers: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules() if hasattr(module, BIAS)
        }
        self.counts: dict[str, torch.Tensor] = {}
        for name, router in self.routers.items():
            router.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def count(router: nn.Module, inputs: Any, outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
            if router.training and torch.is_grad_enabled():
                num_experts = getattr(router, BIAS).numel()
                chosen = torch.bincount(outputs[2].flatten(), minlength=num_experts)
                self.counts[name] = self.counts.get(name, 0) + chosen

        return count

    def take(self, accelerator: Accelerator) -> dict[str, torch.Tensor]:
        """Return the counts by router, summed over processes, and start again from zero."""
        counts, self.counts = self.counts, {}
        if accelerator.num_processes > 1:
            return {name: reduce_tensor(accelerator, count, "sum") for name, count in sorted(counts.items())}
        return counts


class BalanceExperts(TrainerCallback):
    """Updates router biases after each optimizer step and keeps the load figures for the log.

    Args:
        model: the model in training.
        rate: how far a bias moves in one step; 0 only measures.
        accelerator: sums the counts over processes.
    """

    def __init__(self, model: nn.Module, rate: float, accelerator: Accelerator) -> None:
        self.load = ExpertLoad(model)
        self.rate, self.accelerator = rate, accelerator
        self.figures: dict[str, float] = {}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the biases by the loads of the step that just ended."""
        counts = self.load.take(self.accelerator)
        for name, count in counts.items():
            bias = getattr(self.load.routers[name], BIAS)
            load = count.to(bias.device, torch.float32)
            bias += self.rate * torch.sign(load.mean() - load)
        if counts:
            self.figures = load_figures(list(counts.values()))


def load_figures(counts: list[torch.Tensor]) -> dict[str, float]:
    """Return max/mean load of the worst router and the number of experts that got no token in any router."""
    return {
        "experts/max_over_mean": max((count.max() / count.float().mean()).item() for count in counts),
        "experts/unused": float(sum(int((count == 0).sum()) for count in counts)),
    }
