"""Selective activation checkpointing: the same bits, matrix products computed once, and the rest twice."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ladle.training.cross_entropy import use_linear_cross_entropy
from tests.tiny_models import make_model
from tests.training_runs import make_rows, train


@pytest.mark.parametrize("shape", ["qwen3", "deepseek_v3"])
def test_products_are_kept_and_the_result_is_the_same(shape, tmp_path):
    steps = {"max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no", "activation_checkpointing": True}
    ways = {
        "none": ({"activation_checkpointing": False}, {}),
        "whole": ({}, {}),
        "selective": ({}, {"selective_checkpointing": True}),
    }
    flops, weights = {}, {}
    for way, (trainer, section) in ways.items():
        model = make_model(shape)
        model.config.use_cache = False
        use_linear_cross_entropy(model)
        with FlopCounterMode(display=False) as counter:
            train(model, make_rows(8, 32), tmp_path / way, steps | trainer, **section)
        flops[way] = counter.get_total_flops()
        weights[way] = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    assert torch.equal(weights["none"], weights["whole"])
    assert torch.equal(weights["none"], weights["selective"])
    assert flops["none"] <= flops["selective"] < flops["whole"]
