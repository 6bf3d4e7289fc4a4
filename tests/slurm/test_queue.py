"""What a user meets between a launch and its end, on a real Slurm: refusals, failures, a second launch, odd paths."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.conftest import Run
from tests.slurm.jobs import Queue, ladle, launch
from tests.tiny_models import make_model, make_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """
name: small
base: {model: model}
mix:
  sources: [{name: text, dataset: data.jsonl, text: %s, ratio: 1}]
  budget: {sequences: 8}
  sequence_length: 32
pretrain:
  trainer: {max_steps: 2, per_device_train_batch_size: 2, learning_rate: 1e-3, save_strategy: no, logging_steps: 1}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a space in its name, a recipe with one, and what the recipe names by relative paths."""
    place = tmp_path / "my work"
    make_model("llama").save_pretrained(place / "model")
    make_tokenizer().save_pretrained(place / "model")
    rows = [json.dumps({"text": f"Question: {a} plus {b}? {a + b}."}) for a in range(20) for b in range(20)]
    (place / "data.jsonl").write_text("\n".join(rows) + "\n")
    (place / "my recipe.yaml").write_text(RECIPE % "text")
    (place / "profile.yaml").write_text("has_gpus: false\n")
    return place


def status(cluster: dict[str, str], folder: Path) -> dict[str, dict]:
    done = ladle(cluster, folder, "status", "my recipe.yaml", "--root", "all runs", "--json")
    assert done.returncode == 0, done.stderr
    return {row["step"]: row for row in json.loads(done.stdout)}


def submit(cluster: dict[str, str], folder: Path, *arguments: object) -> Queue:
    queue = launch(cluster, folder, Path("my recipe.yaml"), Path("all runs"), "--profile", "profile.yaml", *arguments)
    queue.root = folder / "all runs"
    return queue


def test_a_partition_that_is_not_there(cluster, folder):
    (folder / "profile.yaml").write_text("has_gpus: false\nsteps: {mix: {partition: gpuu}}\n")
    done = ladle(cluster, folder, "launch", "my recipe.yaml", "--slurm", "--profile", "profile.yaml")
    assert done.returncode == 2
    assert "mix.sbatch: invalid partition specified: gpuu" in done.stderr
    assert "fix the profile" in done.stderr
    assert "Traceback" not in done.stderr
    left = subprocess.run(["squeue", "-h"], env=cluster, capture_output=True, text=True)
    assert not left.stdout.strip(), "base was submitted before mix, and is cancelled"


def test_a_stage_that_fails_is_told_and_the_next_launch_submits_what_is_missing(cluster, folder):
    (folder / "my recipe.yaml").write_text(RECIPE % "words")
    first = submit(cluster, folder)
    assert list(first.ids) == ["base", "mix", "pretrain"]
    first.wait()
    told = status(cluster, folder)
    assert told["base"]["state"] == "done"
    failed = f"job {first.ids['mix']} failed: see {folder}/all runs/small/slurm/logs/ladle-mix-{first.ids['mix']}.out"
    assert told["mix"]["job"] == failed
    assert "words" in Path(failed.split("see ")[1]).read_text(), "the log tells what is wrong"
    waited = f"job {first.ids['pretrain']} was cancelled: what it waited for did not end well"
    assert told["pretrain"]["job"] == waited
    (folder / "my recipe.yaml").write_text(RECIPE % "text")
    second = submit(cluster, folder)
    assert list(second.ids) == ["mix", "pretrain"]
    watched = ladle(cluster, folder, "watch", "my recipe.yaml", "--root", "all runs")  # until the jobs have ended
    assert watched.returncode == 0, watched.stderr
    assert watched.stderr.endswith("3 of 3 steps are done\n")
    assert set(Run(folder / "all runs", "", "").artifacts()) == {"base", "mix", "pretrain"}, second.logs()
    assert not submit(cluster, folder).ids, "nothing is left to submit"


def test_a_second_launch_waits_for_the_jobs_of_the_first(cluster, folder):
    (folder / "profile.yaml").write_text("has_gpus: false\noptions: [--hold]\n")
    first = submit(cluster, folder)
    assert status(cluster, folder)["mix"]["job"] == f"job {first.ids['mix']} pending (JobHeldUser)"
    assert not submit(cluster, folder).ids, "all of it is in the queue"
    (folder / "profile.yaml").write_text("has_gpus: false\n")
    other = submit(cluster, folder, "pretrain.trainer.learning_rate=2e-3")
    assert list(other.ids) == ["pretrain"]
    assert first.ids["mix"] in other.show("pretrain")["Dependency"]
    (folder / "my recipe.yaml").write_text("name: something else\n")  # while the jobs wait
    for number in first.ids.values():
        subprocess.run(["scontrol", "release", number], env=cluster, check=True)
    other.wait()
    trained = list((folder / "all runs").glob("small/pretrain/pretrain-*/model"))
    assert len(trained) == 2, other.logs()
