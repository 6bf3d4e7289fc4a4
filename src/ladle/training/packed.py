"""Batches of packed rows: stacked, never padded, and never with an attention mask.

transformers keeps packed documents apart only when `position_ids` restart at each document, no `attention_mask` is
given and the cache is off; an all-ones mask silently joins them (a logit difference of 4.48 was measured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ladle.errors import UserError


def collate_packed(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack rows of a mixture into int64 tensors of shape (rows, sequence_length)."""
    return {
        key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in ("input_ids", "position_ids", "labels")
    }


def refuse_joined_documents(batch: Mapping[str, Any]) -> None:
    """Check that a batch of packed rows has no attention mask.

    Args:
        batch: what a model's forward is given; `position_ids` of shape (rows, sequence_length).

    Raises:
        UserError: its positions restart inside a row and it has a mask all the same.
    """
    positions = batch.get("position_ids")
    if batch.get("attention_mask") is None or positions is None:
        return
    if restarts := int((positions[:, 1:] == 0).sum()):
        raise UserError(
            f"a packed batch ({restarts} documents begin inside its rows) has an attention_mask, which joins them",
            "leave the mask out of the batch: ladle.training.packed.collate_packed makes it without one",
        )
