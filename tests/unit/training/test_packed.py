"""Packed batches have no mask, and one that has is refused before it trains on joined documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ladle.errors import UserError
from ladle.training.attention import collate_packed
from ladle.training.cross_entropy import use_linear_cross_entropy
from tests.tiny_models import make_model


def batch() -> dict[str, torch.Tensor]:
    tokens = np.arange(2, 14)
    row = {"input_ids": tokens, "position_ids": np.array([*range(5), *range(7)]), "labels": tokens, "row": 3}
    return collate_packed([row, row])


def test_rows_are_stacked_and_nothing_else_is_passed_on():
    assert {name: tuple(tensor.shape) for name, tensor in batch().items()} == dict.fromkeys(
        ("input_ids", "position_ids", "labels"), (2, 12)
    )


def test_a_mask_beside_restarting_positions_is_refused():
    model = make_model("qwen3")
    use_linear_cross_entropy(model)
    assert model(**batch()).loss.isfinite()
    with pytest.raises(UserError, match="2 documents begin inside its rows.*collate_packed"):
        model(**batch(), attention_mask=torch.ones(2, 12))


def test_a_mask_over_rows_of_one_document_is_not():
    model = make_model("qwen3")
    use_linear_cross_entropy(model)
    whole = batch() | {"position_ids": torch.arange(12).expand(2, 12)}
    assert model(**whole, attention_mask=torch.ones(2, 12)).loss.isfinite()
