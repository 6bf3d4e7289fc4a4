"""The KTO loss (arXiv 2402.01306, eq. 7 and 8) as a function of each completion's log-ratio.

    r(x, y)  = log π(y|x) - log π_ref(y|x)
    z0       = max(0, mean over mismatched pairs of r(x, y')), no gradient
    desirable:    λ_D (1 - σ(β (r - z0)))
    undesirable:  λ_U (1 - σ(β (z0 - r)))

APO-zero unpaired (arXiv 2408.06266, eq. 7) is the same with z0 = 0, since σ(-x) = 1 - σ(x).

Shape suffixes: B examples, G groups that share a reference point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class KtoWeights:
    """β, λ_D and λ_U."""

    beta: float
    desirable: float
    undesirable: float


def kto_loss(
    ratio_B: torch.Tensor, is_desirable_B: torch.Tensor, z0_B: torch.Tensor, weights: KtoWeights
) -> torch.Tensor:
    """Return the loss of each example, shape (B,).

    Args:
        ratio_B: log π - log π_ref of each completion, summed over its tokens, in nats.
        is_desirable_B: bool labels.
        z0_B: reference point of each example (or one for all), at least 0, detached.
        weights: β, λ_D, λ_U.
    """
    margin_B = torch.where(is_desirable_B, ratio_B - z0_B, z0_B - ratio_B)
    weight_B = torch.where(is_desirable_B, weights.desirable, weights.undesirable)
    return weight_B * (1 - F.sigmoid(weights.beta * margin_B))


def reference_points(kl_sum_G: torch.Tensor, count_G: torch.Tensor) -> torch.Tensor:
    """Return z0 of each group from the sum and number of its mismatched log-ratios; 0 where there are none."""
    return (kl_sum_G / count_G.clamp(min=1)).clamp(min=0)
