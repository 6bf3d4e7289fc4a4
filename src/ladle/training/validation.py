"""Held-out loss of a model on a mixture's validation split: what soups are selected by and KTO rounds are gated on."""

from __future__ import annotations

from pathlib import Path

import torch

from ladle.data.store import MixedDataset
from ladle.models.load import load_model
from ladle.training.linear_cross_entropy import completion_loss_sum
from ladle.training.packed import collate_packed


@torch.inference_mode()
def validation_loss(
    model_dir: Path, data_dir: Path, batch_size: int = 8, dtype: str = "float32", split: str = "validation"
) -> float:
    """Return the mean cross-entropy in nats a token, over every labelled token of a split.

    Args:
        model_dir: the model's folder.
        data_dir: a mixture.
        batch_size: rows at once; it does not change the result beyond rounding.
        dtype: to run the weights in.
        split: of the mixture.
    """
    dataset = MixedDataset(data_dir, split)
    model = load_model(model_dir, dtype).eval()
    total, count = 0.0, 0
    for start in range(0, len(dataset), batch_size):
        batch = collate_packed([dataset[row] for row in range(start, min(start + batch_size, len(dataset)))])
        loss_sum, num_labels = completion_loss_sum(model, batch)
        total, count = total + loss_sum, count + num_labels
    return total / count
