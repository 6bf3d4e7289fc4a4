"""The real program, asked by a signal to stop training: it saves, exits resumable, and ends as if never stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ladle.artifacts.record import read_record
from ladle.training.checkpoint import list_checkpoints, step_of
from tests.distributed.pretrain_job import STEPS, make_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXIT_RESUMABLE = 75


def write_recipe(folder: Path) -> Path:
    job = make_job(folder, "deepseek_v3", 1)
    recipe = {
        "name": "signal",
        "base": {"model": str(job.inputs["model"][0])},
        "pretrain": {"data": str(job.inputs["mixture"][0]), "trainer": job.config.trainer.values()},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def pretrain(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ladle", "pretrain", "--config", str(recipe), "--out", str(out)]
    return subprocess.Popen([*command, "--root", str(recipe.parent / "runs")], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_next_step_and_the_rest_is_the_same(number: signal.Signals, tmp_path: Path):
    recipe = write_recipe(tmp_path)
    uninterrupted = pretrain(recipe, tmp_path / "reference")
    _, messages = uninterrupted.communicate(timeout=300)
    assert uninterrupted.returncode == 0, messages
    out = tmp_path / "out"
    process = pretrain(recipe, out)
    while not (saved := list(tmp_path.glob("out-*.partial/checkpoints/checkpoint-8"))):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    checkpoints = saved[0].parent
    process.send_signal(number)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == EXIT_RESUMABLE, messages
    stopped_at = step_of(list_checkpoints(checkpoints)[-1])
    assert 8 <= stopped_at < STEPS
    resumed = pretrain(recipe, out)
    _, messages = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, messages
    assert f"resuming from checkpoint-{stopped_at}" in messages
    reference, ended = read_record(tmp_path / "reference"), read_record(out)
    assert ended["digest"] == reference["digest"]
    assert ended["metrics"]["optimizer_digest"] == reference["metrics"]["optimizer_digest"]
