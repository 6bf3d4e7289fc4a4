"""DeepSeek-V3's sequence-wise balance loss (arXiv 2412.19437, eq. 17-20), beside the router-bias update.

For each row and router: Σ_e f_e P_e, with f_e = E / (K T) · tokens that chose expert e and P_e the mean share of e in
the tokens' sigmoid scores; it is 1 where all experts are loaded alike. Summed over routers, averaged over rows.

Shape suffixes: N tokens of a microbatch, B its rows, T their length, E experts, K chosen for a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ladle.training.balance import BIAS


class SequenceAuxLoss:
    """Collects what routers decided in a forward pass, and makes the loss of it.

    Args:
        model: the model in training; routers without a bias are left alone.
        weight: what the loss is multiplied by (1e-4 in DeepSeek-V3 and OpenSeek).
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        self.weight = weight
        self.last = 0.0
        self._decisions: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module in model.modules():
            if hasattr(module, BIAS):
                module.register_forward_hook(self._collect)

    def _collect(
        self, router: nn.Module, inputs: Any, outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> None:
        if router.training and torch.is_grad_enabled():
            self._decisions.append((outputs[0], outputs[2]))

    def forget(self) -> None:
        """Begin a forward pass."""
        self._decisions.clear()

    def take(self, num_rows: int) -> torch.Tensor | float:
        """Return the weighted loss of the forward pass that ended, 0 where no router trains."""
        terms = [row_balance(logits, chosen, num_rows).mean() for logits, chosen in self._decisions]
        self.forget()
        if not terms:
            return 0.0
        loss = torch.stack(terms).sum()
        self.last = loss.item()
        return self.weight * loss


def row_balance(router_logits_NE: torch.Tensor, chosen_NK: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return Σ_e f_e P_e of each row, float32, shape (B,)."""
    num_experts, num_chosen = router_logits_NE.shape[-1], chosen_NK.shape[-1]
    scores_BTE = router_logits_NE.float().sigmoid().view(num_rows, -1, num_experts)
    share_BE = (scores_BTE / scores_BTE.sum(-1, keepdim=True)).mean(1)
    chosen_BN = chosen_NK.reshape(num_rows, -1)
    count_BE = torch.zeros_like(share_BE).scatter_add_(1, chosen_BN, torch.ones_like(chosen_BN, dtype=share_BE.dtype))
    return (count_BE * num_experts / (num_chosen * scores_BTE.shape[1]) * share_BE).sum(-1)
