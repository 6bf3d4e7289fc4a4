"""FSDP2 computes what one process does, and bfloat16 over float32 weights learns what bfloat16 alone loses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.parallel import leave_world
from tests.tiny_models import make_model
from tests.training_runs import make_rows, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run_job(*command: str) -> dict:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_shards_train_as_one_process_to_nine_digits():
    """In float64, where rounding is 1e-16: what is left would be a mistake."""
    job = "tests.distributed.fsdp_job"
    two = run_job("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29655", "-m", job, "2")
    one = run_job("-m", job, "1")
    assert (two["wrapper"], one["wrapper"]) == ("FSDPLlamaForCausalLM", "LlamaForCausalLM")
    for key in ("loss", "grad_norm"):
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=0, msg=key)


def share_moved(shape: str, folder: Path, **section: object) -> float:
    """Return the share of the weights with a gradient that the tenth step of a training changes."""
    model = make_model(shape)
    model = model.bfloat16() if section.get("pure_bf16") else model
    model.config.use_cache = False
    use_linear_cross_entropy(model)
    trainer = {
        "max_steps": 10,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
    }
    training = prepare(model, make_rows(80, 32), folder, trainer, dtype="bfloat16", **section)
    step, moved, had_gradient = training.parallel.step, [], []

    def local(tensor: torch.Tensor) -> torch.Tensor:
        return getattr(tensor, "to_local", lambda: tensor)().detach()

    def step_and_compare() -> None:
        weights = [weight for weight in training.model.parameters() if weight.grad is not None]
        masks = [local(weight.grad) != 0 for weight in weights]
        before = [local(weight).clone() for weight in weights]
        step()
        moved.append(
            sum(int((local(w)[mask] != old[mask]).sum()) for w, old, mask in zip(weights, before, masks, strict=True))
        )
        had_gradient.append(sum(int(mask.sum()) for mask in masks))

    training.parallel.step = step_and_compare  # type: ignore[method-assign]
    training.run()
    leave_world()
    return moved[-1] / had_gradient[-1]


@pytest.mark.parametrize("shape", ["qwen3", "deepseek_v3"])
def test_bfloat16_moves_its_float32_weights_and_pure_bfloat16_loses_most_steps(shape, tmp_path):
    assert share_moved(shape, tmp_path / "masters") >= 0.99
    assert share_moved(shape, tmp_path / "pure", pure_bf16=True) <= 0.4


@pytest.mark.parametrize("distributed", ["ddp", "fsdp"])
def test_another_number_of_processes_takes_the_same_rows_where_it_is_allowed(distributed):
    found = run_job("-m", "tests.distributed.other_world", distributed)
    assert found["disturbed"] == pytest.approx(found["whole"], rel=1e-4)
    assert found["said"] == "trained by 2 then 1 then 2 processes"
