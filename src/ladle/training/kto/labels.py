"""λ_D and λ_U for the labels at hand, and the refusal to train on one label alone."""

from __future__ import annotations

import numpy as np

from ladle.errors import UserError
from ladle.log import get_logger
from ladle.training.kto.config import KtoConfig
from ladle.training.kto.loss import KtoWeights

logger = get_logger(__name__)
PAPER_RANGE = (1.0, 4 / 3)
"""λ_D n_D / (λ_U n_U) that the paper advises (arXiv 2402.01306, eq. 8 and below)."""


def choose_weights(config: KtoConfig, is_desirable: np.ndarray) -> KtoWeights:
    """Return the loss's weights and say how they stand to the paper's advice.

    Raises:
        UserError: one label is missing, and `allow_single_label` is not set.
    """
    num_desirable = int(is_desirable.sum())
    num_undesirable = len(is_desirable) - num_desirable
    if 0 in (num_desirable, num_undesirable):
        refuse_single_label(is_desirable, config.allow_single_label)
        logger.warning("training on one label: z0 will cancel the reward; watch the log's z0")
        desirable = 1.0 if config.desirable_weight == "auto" else config.desirable_weight
        return KtoWeights(config.beta, desirable, config.undesirable_weight)
    per_unit = num_desirable / (config.undesirable_weight * num_undesirable)
    desirable = 1 / per_unit if config.desirable_weight == "auto" else config.desirable_weight
    ratio = desirable * per_unit
    logger.info(
        "KTO: %d desirable (weight %.3g), %d undesirable (weight %.3g): λ_D n_D / λ_U n_U = %.3g",
        num_desirable, desirable, num_undesirable, config.undesirable_weight, ratio,
    )  # fmt: skip
    low, high = PAPER_RANGE
    if not low - 1e-9 <= ratio <= high + 1e-9:
        logger.warning(
            "λ_D n_D / λ_U n_U is %.3g, outside the paper's [1, 4/3]: a desirable_weight in [%.3g, %.3g] is inside",
            ratio, low / per_unit, high / per_unit,
        )  # fmt: skip
    return KtoWeights(config.beta, desirable, config.undesirable_weight)


def refuse_single_label(is_desirable: np.ndarray, allow: bool) -> None:
    """Refuse labels that are all alike, unless that is allowed.

    Raises:
        UserError: they are.
    """
    if not allow and len(labels := np.unique(is_desirable)) == 1:
        raise UserError(
            f"every example is labelled {bool(labels[0])}: z0 would grow with the reward and the policy drift as "
            "unbounded SFT",
            "add examples of the other label (a `rollout:` section makes them), or set kto.allow_single_label=true",
        )
