"""Whole trainings of Ladle and TRL side by side: the loss of each of 20 optimizer steps within 1e-4."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.parity.kto.trl_side import make_ladle, preference_rows, run_trl
from tests.tiny_models import make_model, make_tokenizer

STEPS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 20,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "seed": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("all_true", [False, True], ids=["mixed", "single label"])
@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_loss_curves_of_twenty_steps_agree(shape: str, all_true: bool, peft: bool, tmp_path: Path):
    rows = preference_rows(160, all_true)
    model = make_model(shape, len(make_tokenizer()))
    ours = copy.deepcopy(model)
    trainer = make_ladle(ours, rows, tmp_path / "ladle", peft, **STEPS)
    theirs = run_trl(model, rows, tmp_path / "trl", peft, gradient_checkpointing=False, **STEPS)
    torch.manual_seed(3)
    if peft:  # adapters start at random: from the same ones
        trainer.model.load_state_dict(theirs.model.state_dict())
    theirs.train()
    trainer.run()
    curves = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (theirs, trainer)]
    assert len(curves[0]) == len(curves[1]) == 20
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) <= 1e-4
    rewards = [entry["rewards/chosen"] for entry in trainer.state.log_history if "loss" in entry]
    assert abs(rewards[-1] - rewards[0]) > 1e-2  # the policy moved, so that agreement says something
