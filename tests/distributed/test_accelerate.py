"""`accelerate launch` with the configs in recipes/accelerate trains as the recipe's own switch does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ladle.artifacts.record import read_record
from tests.distributed.pretrain_job import make_job
from tests.distributed.test_training import WRAPPERS, with_trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("distributed", ["ddp", "fsdp", "zero2"])
def test_a_config_of_accelerate_starts_the_recipes_processes(distributed: str, repository: Path, tmp_path: Path):
    if distributed == "zero2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (extra `deepspeed`)")
    job = with_trainer(make_job(tmp_path, "qwen3"), max_steps=2)
    recipe = {"name": "launched", "base": {"model": str(job.inputs["model"][0])}}
    recipe["pretrain"] = {"data": str(job.inputs["mixture"][0]), "trainer": job.config.trainer.values()}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = repository / "recipes" / "accelerate" / f"{distributed}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    command = [*launch, "--num_processes", "2", "--main_process_port", "0", "-m", "ladle", "pretrain"]
    options = [f"pretrain.distributed={distributed}", "pretrain.processes=2", "--root", str(tmp_path / "runs")]
    done = subprocess.run(
        [*command, str(tmp_path / "recipe.yaml"), *options], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-6000:]
    (folder,) = (tmp_path / "runs" / "launched" / "pretrain").iterdir()
    record = read_record(folder)
    assert record["counters"]["processes"] == 2
    assert record["metrics"]["wrapper"].startswith(WRAPPERS[distributed])
