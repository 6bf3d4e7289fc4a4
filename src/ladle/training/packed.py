"""Batches of packed rows: stacked, never padded, and never with an attention mask.

transformers keeps packed documents apart only when `position_ids` restart at each document, no `attention_mask` is
given and the cache is off; an all-ones mask silently joins them (a logit difference of 4.48 was measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def collate_packed(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack rows of a mixture into int64 tensors of shape (rows, sequence_length)."""
    return {
        key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in ("input_ids", "position_ids", "labels")
    }
