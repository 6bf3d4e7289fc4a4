"""DDP, FSDP2 and ZeRO-2, pretraining and KTO, by nothing but the recipe's `distributed` and `processes`: each trains in
two processes inside the wrapper that was named, is stopped in the middle, and resumes from what it saved."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ladle.artifacts.record import read_record
from tests.pipeline.conftest import LADLE, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp": "FSDP", "zero2": "DeepSpeedEngine"}
STEPS = {"pretrain": 60, "kto": 24}
PATIENCE_SECONDS = 1200


def stop_once_saved(command: list[str], root: Path, name: str) -> None:
    """Run the command, ask it to stop once the training `name` has a checkpoint, and check that it says resumable."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not list(root.glob(f"*/{name}/{name}-*.partial/checkpoints/checkpoint-*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 75, said


@pytest.mark.parametrize("distributed", ["ddp", "fsdp", "zero2"])
def test_one_switch_trains_both_ways(distributed: str, repository: Path, tmp_path: Path):
    if distributed == "zero2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (extra `deepspeed`)")
    settings = [
        f"{name}.{setting}"
        for name, steps in STEPS.items()
        for setting in (
            f"distributed={distributed}", "processes=2", f"trainer.max_steps={steps}",
            "trainer.save_strategy=steps", "trainer.save_steps=4",
        )
    ]  # fmt: skip
    run = [*LADLE, "run", str(repository / "recipes/tiny.yaml"), *settings, "--only", "kto", "--root", str(tmp_path)]
    for name in STEPS:
        stop_once_saved(run, tmp_path, name)
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    artifacts = Run(tmp_path, "", "").artifacts()
    for name, steps in STEPS.items():
        record = read_record(artifacts[name])
        assert record["counters"]["steps"] == steps, name
        assert record["counters"]["processes"] == 2, f"{name} did not run in two processes"
        assert 0 < record["counters"]["resumed_from_step"] < steps, f"{name} did not resume from a checkpoint"
        assert record["metrics"]["wrapper"].startswith(WRAPPERS[distributed]), name
        assert record["identity"]["config"]["distributed"] == distributed
        assert list((artifacts[name] / "model").glob("*.safetensors"))
