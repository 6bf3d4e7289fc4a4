"""Held-out loss on a mixture's validation split: what training reports, soups are selected by and KTO is gated on."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from ladle.data.store.dataset import MixedDataset
from ladle.models.load import load_model
from ladle.training.attention import use_fused_attention
from ladle.training.linear_cross_entropy import completion_loss_sum
from ladle.training.packed import collate_packed


@torch.no_grad()
def held_out_loss_sum(
    model: PreTrainedModel, dataset: MixedDataset, batch_size: int, process: int = 0, num_processes: int = 1
) -> tuple[float, int]:
    """Return the summed loss in nats over every labelled token of this process's rows, and the number of such tokens.

    The model is left in the mode (training or not) it was in.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    rows = range(process, len(dataset), num_processes)
    for start in range(0, len(rows), batch_size):
        batch = collate_packed([dataset[row] for row in rows[start : start + batch_size]])
        loss_sum, num_labels = completion_loss_sum(model, batch)
        total, count = total + loss_sum, count + num_labels
    model.train(was_training)
    return total, count


def validation_loss(
    model_dir: Path, data_dir: Path, batch_size: int = 8, dtype: str = "float32", split: str = "validation"
) -> float:
    """Return the mean cross-entropy in nats a token, over every labelled token of a held-out split.

    Args:
        model_dir: the model's folder.
        data_dir: a mixture.
        batch_size: rows at once; it does not change the result beyond rounding.
        dtype: to run the weights in.
        split: of the mixture.
    """
    model = load_model(model_dir, dtype)
    use_fused_attention(model)
    total, count = held_out_loss_sum(model, MixedDataset(data_dir, split), batch_size)
    return total / count
