"""Keeping experts equally loaded: by the routers' biases, and by DeepSeek-V3's sequence-wise loss beside them.

After each optimizer step every router's bias moves towards the mean load,

    b_e ← b_e + rate · sign(mean load - load_e)

as in DeepSeek-V3 (arXiv 2412.19437, §2.1.2) and its source (arXiv 2408.15664); the rate of 1e-3 is DeepSeek-V3's and
OpenSeek's. The bias only chooses experts, it never weighs them, and it carries no gradient. transformers' DeepSeek-V3
leaves it untouched in training.

Loads are counted over all microbatches of a step and all processes, once where activation checkpointing runs a forward
pass again.

The sequence-wise balance loss (arXiv 2412.19437, eq. 17-20) is, for each row and router, Σ_e f_e P_e with
f_e = E / (K T) · tokens that chose expert e and P_e the mean share of e in the tokens' sigmoid scores; it is 1 where
all experts are equally loaded. Summed over routers, averaged over rows.

Shape suffixes: N tokens of a microbatch, B its rows, T their length, E experts, K chosen for a token.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ladle.models.probe import Router, decision
from ladle.training.parallel import World


class BalanceExperts:
    """Counts the tokens that each router with a bias gives each expert, and moves the biases after each step.

    Args:
        routers: those of the model in training that have a bias.
        rate: how far a bias moves in one step; 0 only measures.
        world: sums the counts over processes.

    Attributes:
        counts: tokens by router and expert, of this process, since the last optimizer step.
        loads: the counts of the last optimizer step, of all processes.
        is_counting: a forward pass of training is under way, and not its repetition in the backward pass.
    """

    def __init__(self, routers: dict[str, Router], rate: float, world: World) -> None:
        self.routers, self.rate, self.world = routers, rate, world
        # flat: the bias of some architectures, such as ERNIE's, is a row of a matrix
        self.counts = {name: torch.zeros_like(one.bias, dtype=torch.long).flatten() for name, one in routers.items()}
        self.loads: list[torch.Tensor] = []
        self.is_counting = False
        for name, router in routers.items():
            router.module.register_forward_hook(partial(self._count, self.counts[name]))

    def _count(self, count_E: torch.Tensor, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Count a forward pass; the same code for every layer, so that what is compiled for one runs for the others."""
        if self.is_counting and (decided := decision(outputs, count_E.numel())) is not None:
            chosen = decided[1].flatten().long()
            count_E.scatter_add_(0, chosen, torch.ones_like(chosen))  # a GPU's bincount waits for its sizes

    def forget(self) -> None:
        """Begin a step."""
        for count_E in self.counts.values():
            count_E.zero_()

    def after_step(self) -> None:
        """Move the biases by the loads of the step that just ended, over all processes."""
        counts = {name: self.world.sum(count.clone()) for name, count in sorted(self.counts.items())}
        self.forget()
        for name, count in counts.items():
            bias = self.routers[name].bias.detach()  # of one storage; a parameter in some architectures
            load = count.to(bias.device, torch.float32)
            move = (self.rate * torch.sign(load.mean() - load)).reshape(bias.shape)
            bias += distribute_tensor(move, bias.device_mesh, bias.placements) if isinstance(bias, DTensor) else move
        self.loads = list(counts.values())

    @property
    def figures(self) -> dict[str, float]:
        """The load at the last optimizer step, for the log."""
        return load_figures(self.loads) if self.loads else {}


def load_figures(counts: list[torch.Tensor]) -> dict[str, float]:
    """Return max/mean load of the worst router and the number of experts that got no token in any router."""
    worst = torch.stack([count.max() / count.float().mean() for count in counts]).max()
    unused = torch.stack([(count == 0).sum() for count in counts]).sum()
    max_over_mean, num_unused = torch.stack([worst, unused.to(worst)]).tolist()
    return {"experts/max_over_mean": max_over_mean, "experts/unused": num_unused}


class SequenceAuxLoss:
    """Collects what routers decided in a forward pass, and makes the loss of it.

    Args:
        routers: those of the model in training that have a bias.
        weight: what the loss is multiplied by (1e-4 in DeepSeek-V3 and OpenSeek).

    Attributes:
        last: the loss of the last forward pass, not weighted.
    """

    def __init__(self, routers: dict[str, Router], weight: float) -> None:
        self.weight = weight
        self.last = torch.zeros(())
        self._is_collecting = False
        self._routers = [router.module for router in routers.values()]
        for router in routers.values():
            router.module.register_forward_hook(partial(self._collect, router.bias.numel()))

    def _collect(self, num_experts: int, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep a decision in the router: a list would grow from layer to layer, each then compiled for itself."""
        if self._is_collecting and module.training and torch.is_grad_enabled():  # not where a pass is repeated
            module.decided = decision(outputs, num_experts)  # type: ignore[assignment]

    def forget(self) -> None:
        """Begin a forward pass."""
        self._is_collecting = True
        for module in self._routers:
            module.decided = None  # type: ignore[assignment]

    def take(self, num_rows: int) -> torch.Tensor | float:
        """Return the weighted loss of the forward pass that ended, 0 where no router trains."""
        decisions = [decided for module in self._routers if (decided := cast(Any, module).decided) is not None]
        terms = [row_balance(logits, chosen, num_rows).mean() for logits, chosen in decisions]
        self.forget()
        self._is_collecting = False
        if not terms:
            return 0.0
        loss = torch.stack(terms).sum()
        self.last = loss.detach()
        return self.weight * loss


def row_balance(router_logits_NE: torch.Tensor, chosen_NK: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return Σ_e f_e P_e of each row, float32, shape (B,)."""
    num_experts, num_chosen = router_logits_NE.shape[-1], chosen_NK.shape[-1]
    scores_BTE = router_logits_NE.float().sigmoid().view(num_rows, -1, num_experts)
    share_BE = (scores_BTE / scores_BTE.sum(-1, keepdim=True)).mean(1)
    chosen_BN = chosen_NK.reshape(num_rows, -1)
    count_BE = torch.zeros_like(share_BE).scatter_add_(1, chosen_BN, torch.ones_like(chosen_BN, dtype=share_BE.dtype))
    return (count_BE * num_experts / (num_chosen * scores_BTE.shape[1]) * share_BE).sum(-1)
