"""The KTO loss (arXiv 2402.01306, eq. 7 and 8) and the log-probabilities it is made of.

    r(x, y)  = log π(y|x) - log π_ref(y|x)
    z0       = max(0, mean over mismatched pairs of r(x, y')), no gradient
    desirable:    λ_D (1 - σ(β (r - z0)))
    undesirable:  λ_U (1 - σ(β (z0 - r)))

Shape suffixes: B examples, T positions, N completion tokens of the whole batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel


@dataclass(frozen=True)
class KtoWeights:
    """β, λ_D and λ_U."""

    beta: float
    desirable: float
    undesirable: float


def kto_loss(
    ratio_B: torch.Tensor, is_desirable_B: torch.Tensor, z0: torch.Tensor, weights: KtoWeights
) -> torch.Tensor:
    """Return the loss of each example, shape (B,).

    Args:
        ratio_B: log π - log π_ref of each completion, summed over its tokens, in nats.
        is_desirable_B: bool labels.
        z0: scalar reference point, at least 0, detached.
        weights: β, λ_D, λ_U.
    """
    margin_B = torch.where(is_desirable_B, ratio_B - z0, z0 - ratio_B)
    weight_B = torch.where(is_desirable_B, weights.desirable, weights.undesirable)
    return weight_B * (1 - F.sigmoid(weights.beta * margin_B))


def reference_point(kl_ratio_B: torch.Tensor) -> torch.Tensor:
    """Return z0 of the mismatched pairs' log-ratios: their mean, not below 0, without gradient."""
    return kl_ratio_B.detach().mean().clamp(min=0)


def completion_logps(
    model: PreTrainedModel, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, is_completion_BT: torch.Tensor
) -> torch.Tensor:
    """Return log π(completion | prompt) of each row, summed over its completion tokens, shape (B,), float32.

    The head is applied at the positions that predict a completion token, and nowhere else.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    assert head is not None
    hidden_BTD = decoder(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False).last_hidden_state
    predicts_BT = is_completion_BT[:, 1:]
    logits_NV = head(hidden_BTD[:, :-1][predicts_BT]).float()
    targets_N = input_ids_BT[:, 1:][predicts_BT]
    logps_N = -F.cross_entropy(logits_NV, targets_N, reduction="none")
    row_N = predicts_BT.nonzero()[:, 0]
    return torch.zeros(len(input_ids_BT), device=logps_N.device).index_add(0, row_N, logps_N)
