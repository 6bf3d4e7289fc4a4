"""KTO as it really runs: killed in training and in the reference pass, in one process and in two, under ZeRO-2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ladle.artifacts.worker import run_in_processes
from ladle.kto import train as kto
from tests.distributed import kill_training
from tests.distributed.kto_job import make_config, make_inputs, run_reference
from tests.distributed.test_training import KILLS, SEED, WRAPPERS, losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
STEPS_COMPARED = {"qwen3": 20, "deepseek_v3": 1}
"""Losses differ by rounding alone: 1e-6 over 20 steps of a dense model; an MoE's experts may flip, so one step."""


@pytest.mark.parametrize(
    ("shape", "processes", "distributed", "dtype"),
    [
        ("deepseek_v3", 1, "ddp", "float32"),
        ("qwen3", 2, "ddp", "float32"),
        ("deepseek_v3", 2, "fsdp", "bfloat16"),
        ("deepseek_v3", 2, "zero2", "bfloat16"),
    ],
)
def test_killed_training_ends_with_the_same_bytes(shape, processes, distributed, dtype):
    seen = kill_training.run_apart(shape, processes, KILLS, SEED, dtype, distributed, stage="kto")
    assert seen["kills"] >= KILLS, seen


def test_a_killed_reference_pass_ends_with_the_same_bytes():
    command = [sys.executable, "-m", "tests.distributed.kill_reference", "--kills", str(KILLS), "--seed", str(SEED)]
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] >= KILLS


@pytest.mark.parametrize("distributed", ["ddp", "fsdp", "zero2"])
@pytest.mark.parametrize("shape", ["qwen3", "deepseek_v3"])
def test_steps_are_the_same_in_two_processes_and_for_any_microbatch(shape, distributed, tmp_path):
    """The same pairs, z0 and losses; 90 rows make a last step that is not full, which all of them take."""
    inputs = make_inputs(tmp_path, shape, 90)
    # (processes, rows of a microbatch, accumulation, tokens of a forward pass)
    ways = {"one": (1, 8, 1, 128), "many": (1, 2, 4, 1_000), "two": (2, 2, 2, 128)}
    logs = {}
    for name, (processes, rows, accumulation, budget) in ways.items():
        changes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        changes |= {"max_tokens_per_microbatch": budget, "learning_rate": 1e-4, "max_steps": 24, "logging_steps": 1}
        way = distributed if processes > 1 else "ddp"
        config = make_config(processes, way, save_strategy="no", **changes)
        reference = run_reference(config, inputs, tmp_path / f"reference-{name}")
        out = tmp_path / name
        out.mkdir()
        needs = inputs | {"reference": [reference]}
        if processes == 1:
            kto.run(config, needs, out)
        else:
            summary = run_in_processes("kto", config, needs, out, processes)
            assert summary.counters["processes"] == 2
            assert summary.metrics["wrapper"].startswith(WRAPPERS[distributed])
            assert (out / "model" / "config.json").is_file()
        logs[name] = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    steps = STEPS_COMPARED[shape]
    for name in ("many", "two"):
        for key, tolerance in (("loss", 1e-6), ("kl", 1e-4), ("rewards/chosen", 1e-5)):
            one, other = ([entry[key] for entry in log if "loss" in entry][:steps] for log in (logs["one"], logs[name]))
            np.testing.assert_allclose(other, one, rtol=0, atol=tolerance, err_msg=f"{name} {key}")
    counts = {
        name: [(e["count/chosen"], e["count/rejected"]) for e in log if "loss" in e] for name, log in logs.items()
    }
    assert counts["one"] == counts["many"] == counts["two"]
    assert sum(counts["one"][11]) == 90 - 11 * 8


def test_no_second_model_is_held_in_training(tmp_path, monkeypatch):
    """What training reads of the reference is two arrays; one model is loaded, and none is copied."""
    config = make_config(max_steps=2, save_strategy="no", logging_steps=1)
    inputs = make_inputs(tmp_path, "qwen3", 20)
    inputs |= {"reference": [run_reference(config, inputs, tmp_path / "reference")]}
    loaded = []
    load = kto.load_policy
    monkeypatch.setattr(kto, "load_policy", lambda *args, **kwargs: loaded.append(args) or load(*args, **kwargs))
    made, make = [], kto.KtoTask.__init__

    def record(self, *args, **kwargs):
        make(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(kto.KtoTask, "__init__", record)
    out = tmp_path / "out"
    out.mkdir()
    kto.run(config, inputs, out)
    assert len(loaded) == len(made) == 1
    assert not [value for value in vars(made[0]).values() if hasattr(value, "parameters")]
    assert losses(out)
