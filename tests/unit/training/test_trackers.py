"""Trackers: all steps of a recipe are one run, each by its name, with scores and the report's path."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import ladle

TINY = "{model_type: qwen3, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, "
RECIPE = f"""\
name: tracked
datasets:
  problems: {{kind: word_problems, train: 40, worksheets: 2, prompts: 4, validation: 4, test: 4}}
base:
  init:
    architecture: {TINY}num_key_value_heads: 2, head_dim: 16}}
    tokenizer: {{dataset: problems, split: worked, vocab_size: 300}}
mix:
  sources:
    - {{name: worked, dataset: problems, split: worked, ratio: 1.0, max_epochs: 100}}
  budget: {{sequences: 8}}
  sequence_length: 64
pretrain:
  trainer: {{max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, save_strategy: "no", report_to: TRACKER}}
evaluate:
  models: [pretrained]
  benchmarks: [{{name: words, dataset: problems}}]
  limit: 2
  sampling: {{max_new_tokens: 2}}
report: {{}}
"""
CURVES = {"pretrain/loss", "pretrain/grad_norm", "pretrain/learning_rate", "pretrain/tokens_per_second"}
LOGGED = {*CURVES, "evaluate/pretrained/words"}


def build(tracker: str, folder: Path) -> ladle.Run:
    """Build the pretraining, then, as another command would, what is left."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("TRACKER", tracker))
    ladle.open(recipe, root=folder / "runs", only="pretrain").build()
    run = ladle.open(recipe, root=folder / "runs")
    run.build()
    return run


def test_tensorboard_has_one_run_of_all_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = build("tensorboard", tmp_path)
    (log,) = (tmp_path / "runs" / "tracked" / "tensorboard").iterdir()
    events = EventAccumulator(str(log)).Reload()
    assert [event.step for event in events.Scalars("pretrain/loss")] == [1, 2]
    assert set(events.Tags()["scalars"]) >= CURVES
    (score,) = events.Scalars("evaluate/pretrained/words")
    assert score.value == pytest.approx(run.scores["pretrained"]["words"].accuracy)
    (path,) = events.Tensors("report/path/text_summary")
    assert path.tensor_proto.string_val == [str(run.report).encode()]
    (settings,) = events.Tensors("pretrain/arguments/text_summary")
    assert json.loads(settings.tensor_proto.string_val[0])["max_steps"] == 2
    assert not any("tfevents" in name for name in run["pretrain"].record["files"])


def test_other_settings_are_another_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("TRACKER", "tensorboard"))
    runs = [ladle.open(tmp_path / "recipe.yaml", {"seed": seed}).workspace.tracked for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert ladle.open(tmp_path / "recipe.yaml", {"pretrain.trainer.report_to": "none"}).workspace.tracked is None


def build_apart(tracker: str, folder: Path, **environment: str) -> str:
    """Build in a process of its own, as trackers read their settings when they are imported; return what it said."""
    code = "import sys, pathlib; from tests.unit.training.test_trackers import build; "
    code += "print(build(sys.argv[1], pathlib.Path(sys.argv[2])).workspace.tracked.name)"
    command = [sys.executable, "-c", code, tracker, str(folder)]
    root, environment = Path(__file__).parents[3], os.environ | environment
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr


def test_wandb_offline_has_one_run_of_all_steps(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    name = build_apart("wandb", tmp_path, WANDB_MODE="offline")
    folders = sorted(tmp_path.glob("runs/tracked/wandb/offline-run-*"))
    assert folders
    assert all(folder.name.endswith(name) for folder in folders), "to sync, they are parts of one run"
    written = b"".join(path.read_bytes() for folder in folders for path in folder.glob("*.wandb"))
    assert {key for key in LOGGED | {"pretrain/step"} if key.encode() in written} == LOGGED | {"pretrain/step"}


def test_trackio_has_one_run_of_all_steps(tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    name = build_apart("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "ladle.db") as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics").fetchall()
    assert {run for run, _ in rows} == {name}
    assert {key for _, metrics in rows for key in json.loads(metrics)} >= LOGGED


def test_without_a_login_wandb_ends_in_one_message(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    said = build_apart("wandb", tmp_path, WANDB_MODE="online", HOME=str(tmp_path))
    assert "UserError: trainer.report_to=wandb: " in said
    assert "WANDB_MODE=offline" in said
