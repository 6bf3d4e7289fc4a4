"""What a rehearsal makes small and what it keeps; the rehearsal itself is run by tests/pipeline."""

from __future__ import annotations

import os
import sys

import pytest
import yaml

from ladle.doctor.trainings import trainings_of
from ladle.recipe import load_recipe
from ladle.rehearsal.measure import watch
from ladle.rehearsal.reckon import gpu_hours
from ladle.rehearsal.shrink import Shrunk


def shrunk(repository, recipe: str, gpus: int) -> Shrunk:
    tree = yaml.safe_load((repository / f"recipes/{recipe}.yaml").read_text())
    return Shrunk(tree, gpus, lambda key, source, tokens: f"{key}.jsonl")


def test_shape_dtype_and_rows_stay_and_amounts_shrink(repository):
    full = yaml.safe_load((repository / "recipes/openseek/rehearsal.yaml").read_text())
    small = shrunk(repository, "openseek/rehearsal", 8).tree
    assert small["base"] == full["base"]
    assert small["mix"]["sequence_length"] == 4096
    assert small["pretrain"]["dtype"] == "bfloat16"
    assert small["pretrain"]["processes"] == 8
    assert small["kto"]["distributed"] == "zero2"
    assert small["pretrain"]["trainer"]["per_device_train_batch_size"] == 8
    assert small["pretrain"]["trainer"]["max_steps"] == 2
    assert small["mix"]["budget"]["sequences"] == 2 * 8 * 8 + 2
    assert small["rollout"]["prompts"]["limit"] == small["evaluate"]["limit"] == 2
    assert small["evaluate"]["sampling"]["max_new_tokens"] == small["rollout"]["max_new_tokens"] == 16
    assert small["pretrain"]["trainer"]["save_steps"] == small["kto"]["trainer"]["save_steps"] == 1
    assert small["name"] == "openseek-rehearsal-rehearsal"
    assert shrunk(repository, "openseek/rehearsal", 8).changes == []


def test_what_one_machine_cannot_try_is_said(repository):
    changes = "\n".join(shrunk(repository, "openseek/rehearsal", 0).changes)
    assert "pretrain: 1 row(s) a microbatch instead of 8, on a CPU" in changes
    assert "kto: 2 row(s) a microbatch instead of 8, on a CPU" in changes
    assert "pretrain: 1 process(es) instead of 8" in changes
    assert "kto: one process, so the optimizer is not split (zero2)" in changes


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("recipe", ["pretrain", "kto", "kto-rollouts", "rehearsal", "soup", "evaluate"])
def test_a_small_recipe_is_a_recipe(repository, tmp_path, recipe, gpus):
    small = tmp_path / "recipe.yaml"
    small.write_text(yaml.safe_dump(shrunk(repository, f"openseek/{recipe}", gpus).tree))
    overrides = ["data_root=data"] if recipe == "rehearsal" else []
    assert load_recipe(small, overrides).name.endswith("-rehearsal")


def test_the_gpu_hours_are_those_of_arithmetic(repository):
    path = repository / "recipes/openseek/rehearsal.yaml"
    tree = yaml.safe_load(path.read_text())
    pretrain, kto = trainings_of(load_recipe(path, ["data_root=data"]))
    config = tree["base"]["init"]["architecture"]
    flops = 6 * 0.397e9 + 6 * 6 * 10 * 192 * 4096  # active weights; layers, heads and their size, positions
    tokens = 7_325 * 8 * 8 * 16 * 4096
    assert gpu_hours(pretrain, 1, config) == pytest.approx(tokens * flops * 4 / 3 / (0.4 * 989e12) / 3600, rel=0.01)
    tokens = 500 * 8 * 8 * 4096
    assert gpu_hours(kto, 3, config) == pytest.approx(3 * tokens * flops * 5 / 3 / (0.4 * 989e12) / 3600, rel=0.01)


def test_memory_is_watched_here_and_on_gpus(tmp_path, monkeypatch):
    """With an nvidia-smi that knows one process of ours and one of somebody else's."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho \"$(cat {tmp_path}/pid), 300\"\necho '1, 5000'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    held = (
        "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); b = bytearray(2 * 10**8); time.sleep(4)"
    )
    watched = watch([sys.executable, "-c", held, str(tmp_path / "pid")], tmp_path / "log")
    assert watched.code == 0
    assert 2e8 < watched.peak_bytes < 3e8
    assert watched.gpu_peak_bytes == 300 * 2**20
