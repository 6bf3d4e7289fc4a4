"""Each tracker is given what a small training logs, by transformers' own callbacks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ladle.training.cross_entropy import use_linear_cross_entropy
from tests.tiny_models import make_model
from tests.training_runs import make_rows, train


def track(tracker: str, folder, **trainer: object) -> None:
    model = make_model("qwen3")
    use_linear_cross_entropy(model)
    steps = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
    train(model, make_rows(8, 16), folder, steps | {"report_to": tracker, "run_name": "tiny"} | trainer)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path)
    (log,) = (tmp_path / "checkpoints" / "runs").iterdir()
    events = EventAccumulator(str(log)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert {"train/grad_norm", "train/learning_rate", "train/tokens_per_second"} <= set(events.Tags()["scalars"])


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    import wandb

    track("wandb", tmp_path)
    assert wandb.run is not None
    seen = dict(wandb.run.summary)
    wandb.finish()
    assert seen["train/global_step"] == 2
    assert seen["train/loss"] > 0
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_trackio(tmp_path):
    """In a process of its own: trackio reads its folder when it is imported."""
    pytest.importorskip("trackio", reason="trackio is not installed")
    code = "import sys, pathlib; from tests.unit.training.test_trackers import track; "
    code += "track('trackio', pathlib.Path(sys.argv[1]), project='tiny')"
    root, environment = Path(__file__).parents[3], os.environ | {"TRACKIO_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=root, env=environment)
    with sqlite3.connect(tmp_path / "tiny.db") as database:
        (count,) = database.execute("SELECT count(*) FROM metrics").fetchone()
    assert count >= 2
