"""What a rehearsal makes small and what it keeps; the rehearsal itself is run by tests/pipeline."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import yaml

from ladle.checkup import Checkup, Machine, Measured
from ladle.pipeline import Pipeline
from ladle.preflight.diagnose import CheckedInputs
from ladle.preflight.rehearse import make_small, watch
from ladle.recipe import Recipe, load_recipe

DATA = ["data_root=data"]


def checkups(recipe: Recipe, root: Any) -> list[Checkup]:
    steps = Pipeline(recipe, CheckedInputs(root, []), on_fault=lambda fault: None).in_build_order()
    return [Checkup(step, Machine()) for step in steps]


@pytest.fixture
def shrunk(repository, tmp_path, monkeypatch):
    """Make a recipe of the project small; of sources only the names are taken."""
    monkeypatch.setattr("ladle.data.before._sample_source", lambda source, tokens, out: out)

    def make(recipe: str, gpus: int) -> tuple[dict[str, Any], list[str]]:
        full = load_recipe(repository / f"recipes/{recipe}.yaml", DATA if recipe.endswith("rehearsal") else [])
        small, changes = make_small(full, checkups(full, tmp_path), gpus, tmp_path)
        return small.model_dump(mode="json", exclude={"source"}), changes

    return make


def test_shape_dtype_and_rows_stay_and_amounts_shrink(repository, shrunk):
    full = yaml.safe_load((repository / "recipes/openseek/rehearsal.yaml").read_text())
    small, changes = shrunk("openseek/rehearsal", 8)
    assert small["base"]["init"]["architecture"] == full["base"]["init"]["architecture"]
    assert small["mix"]["sequence_length"] == 4096
    assert small["pretrain"]["dtype"] == "bfloat16"
    assert small["pretrain"]["processes"] == 8
    assert small["kto"]["distributed"] == "zero2"
    assert small["pretrain"]["trainer"]["per_device_train_batch_size"] == 8
    assert small["pretrain"]["trainer"]["max_steps"] == 2
    assert 2 * 8 * 8 <= small["mix"]["budget"]["sequences"] <= 2 * 8 * 8 + 2
    assert small["rollout"]["prompts"]["limit"] == small["evaluate"]["limit"] == 2
    assert small["evaluate"]["sampling"]["max_new_tokens"] == small["rollout"]["max_new_tokens"] == 16
    assert small["pretrain"]["trainer"]["save_steps"] == small["kto"]["trainer"]["save_steps"] == 1
    assert small["name"] == "openseek-rehearsal-rehearsal"
    assert changes == []


def test_what_one_machine_cannot_try_is_said(shrunk):
    changes = "\n".join(shrunk("openseek/rehearsal", 0)[1])
    assert "pretrain: 1 row(s) a microbatch instead of 8, on a CPU" in changes
    assert "kto: 2 row(s) a microbatch instead of 8, on a CPU" in changes
    assert "pretrain: 1 process(es) instead of 8" in changes
    assert "kto: one process, so the optimizer is not split (zero2)" in changes


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("recipe", ["pretrain", "kto", "kto-rollouts", "rehearsal", "soup", "evaluate"])
def test_a_small_recipe_is_a_recipe(shrunk, tmp_path, recipe, gpus):
    small = tmp_path / "recipe.yaml"
    small.write_text(yaml.safe_dump(shrunk(f"openseek/{recipe}", gpus)[0]))
    assert load_recipe(small).name.endswith("-rehearsal")


def test_the_gpu_hours_are_those_of_arithmetic(repository, tmp_path):
    steps = checkups(load_recipe(repository / "recipes/openseek/rehearsal.yaml", DATA), tmp_path)
    measured = Measured(None, 1.0, {"timings": {}})
    hours: dict[str, list[float]] = {"pretrain": [], "kto": []}
    for one in steps:
        if one.step.stage.name in hours:
            hours[one.step.stage.name].append(one.step.stage.extrapolate(one, measured).gpu_hours)
    flops = 6 * 0.397e9 + 6 * 6 * 10 * 192 * 4096  # active weights; layers, heads and their size, positions
    tokens = 7_325 * 8 * 8 * 16 * 4096
    assert hours["pretrain"] == [pytest.approx(tokens * flops * 4 / 3 / (0.4 * 989e12) / 3600, rel=0.01)]
    tokens = 500 * 8 * 8 * 4096
    assert hours["kto"] == [pytest.approx(tokens * flops * 5 / 3 / (0.4 * 989e12) / 3600, rel=0.01)]


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
