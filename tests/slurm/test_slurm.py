"""Recipes on a real Slurm: `ladle launch --slurm` alone, jobs stopped and requeued in the middle, the same bytes."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from ladle.artifacts.record import read_record
from tests.pipeline.conftest import Run
from tests.slurm.jobs import GOES_ON, digests, ladle, launch, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TRAINING = ("pretrain.trainer.max_steps=200", "pretrain.trainer.save_steps=20", "pretrain.trainer.logging_steps=20")


def test_a_whole_recipe_with_jobs_stopped_in_the_middle_ends_with_the_same_bytes(cluster, repository, tmp_path):
    recipe, profile = repository / "recipes/tiny.yaml", tmp_path / "profile.yaml"
    profile.write_text("has_gpus: false\nsignal_seconds: 60\nsteps: {mix: {shards: 2}, evaluate/kto: {shards: 2}}\n")
    queue = launch(cluster, repository, recipe, tmp_path / "slurm", "--profile", profile, *TRAINING)
    assert {"mix.shards", "mix", "pretrain", "evaluate/kto.shards", "report"} <= set(queue.ids)
    queue.wait_for_checkpoint("pretrain")
    # the signal that Slurm sends before the time limit: the command ends with 75 and the script requeues itself
    subprocess.run(["scancel", "--signal=USR1", "--batch", queue.ids["pretrain"]], env=cluster, check=True)
    wait_until(lambda: queue.show("pretrain").get("Restarts") == "1", queue.logs)
    wait_until(lambda: queue.show("pretrain")["JobState"] == "RUNNING", queue.logs)
    wait_until(lambda: GOES_ON.search(queue.logs()), queue.logs)
    # preemption: Slurm takes the job away with SIGTERM and requeues it by itself
    subprocess.run(["scontrol", "requeue", queue.ids["pretrain"]], env=cluster, check=True)
    wait_until(lambda: queue.show("pretrain").get("Restarts") == "2", queue.logs)
    queue.wait()
    assert "stopped and saved (exit code 75): back into the queue" in queue.logs(), queue.logs()
    assert "DUE TO JOB REQUEUE" in queue.logs(), queue.logs()
    plain = ladle(
        os.environ | {"OMP_NUM_THREADS": "1"}, repository, "run", recipe, "--root", tmp_path / "plain", *TRAINING
    )
    assert plain.returncode == 0, plain.stderr
    ours, theirs = digests(tmp_path / "slurm"), digests(tmp_path / "plain")
    assert set(ours) == set(theirs), queue.logs()
    differing = [name for name in ours if ours[name] != theirs[name] and name != "report"]
    assert not differing


SMALL = """
name: small
base: {{model: {model}}}
mix:
  sources: [{{name: text, dataset: {data}, ratio: 1, max_epochs: 100}}]
  budget: {{sequences: 64}}
  sequence_length: 64
pretrain:
  trainer: {{max_steps: 120, per_device_train_batch_size: 2, learning_rate: 1e-3, save_steps: 10, logging_steps: 10}}
"""


def test_two_nodes_meet_train_are_stopped_and_end_as_two_processes_of_one(cluster, repository, tmp_path):
    from tests.tiny_models import make_model, make_tokenizer

    make_model("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    rows = [json.dumps({"text": f"Question: {a} plus {b}? {a + b}."}) for a in range(20) for b in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMALL.format(model=tmp_path / "model", data=tmp_path / "data.jsonl"))
    profile = tmp_path / "profile.yaml"
    profile.write_text("has_gpus: false\nsteps: {pretrain: {nodes: 2}}\n")
    queue = launch(cluster, repository, recipe, tmp_path / "slurm", "--profile", profile)
    queue.wait_for_checkpoint("pretrain")
    assert queue.show("pretrain")["NumNodes"] == "2"
    subprocess.run(["scancel", "--signal=USR1", "--batch", queue.ids["pretrain"]], env=cluster, check=True)
    wait_until(lambda: queue.show("pretrain").get("Restarts") == "1", queue.logs)
    queue.wait()
    done = Run(tmp_path / "slurm", "", "").artifacts()
    assert "pretrain" in done, queue.logs()
    counters = read_record(done["pretrain"])["counters"]
    assert counters["processes"] == 2
    assert counters["resumed_from_step"] > 0
    plain = ladle(
        os.environ | {"OMP_NUM_THREADS": "1"}, repository, "run", recipe, "pretrain.processes=2", "--root",
        tmp_path / "plain",
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    assert digests(tmp_path / "slurm") == digests(tmp_path / "plain")
