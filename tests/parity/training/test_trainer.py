"""The training loop against transformers.Trainer on the same rows, step by step, and FSDP2 against one process.

Twenty float32 steps with accumulation, clipping and a cosine that ends above zero: the logged losses agree to 1e-6 of
their size, about the rounding of a float32 sum of their terms.
"""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.packed_rows import collate_packed
from tests.tiny_models import make_model
from tests.training_runs import make_rows, prepare

STEPS = {
    "max_steps": 20,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.5,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 5,
}


def curve(log: list[dict], key: str) -> list[float]:
    return [entry[key] for entry in log if "loss" in entry]


@pytest.mark.parametrize("shape", ["qwen3", "deepseek_v3"])
def test_twenty_steps_are_those_of_transformers(shape, tmp_path):
    """Two and a half epochs of ours, dealt out to the Trainer as one."""
    rows = make_rows(48, 32)
    model = make_model(shape)
    model.config.use_cache = False
    ours = copy.deepcopy(model)
    use_linear_cross_entropy(ours)
    training = prepare(ours, rows, tmp_path / "ladle", STEPS)
    dealt = [row for step in range(1, STEPS["max_steps"] + 1) for row in training.order.rows(step)]
    training.run()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "hf"), use_cpu=True, report_to="none", remove_unused_columns=False,
        train_sampling_strategy="sequential", **STEPS,
    )  # fmt: skip
    theirs = Trainer(model, arguments, data_collator=collate_packed, train_dataset=[rows[row] for row in dealt])
    theirs.train()
    for key in ("loss", "grad_norm", "learning_rate"):
        torch.testing.assert_close(
            curve(training.state.log_history, key), curve(theirs.state.log_history, key), rtol=1e-6, atol=0, msg=key
        )
