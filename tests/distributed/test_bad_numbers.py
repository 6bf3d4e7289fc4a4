"""A loss or gradient that is not finite, in pretraining and KTO: it stops the run or is left out; no file holds it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ladle.errors import CheckFailed
from ladle.kto.task import KtoTask
from ladle.stage import StageResult
from ladle.training.checkpoint import list_checkpoints, step_of
from ladle.training.loop import Training
from tests.distributed.kto_job import make_kto_job
from tests.distributed.pretrain_job import Job, make_job
from tests.distributed.test_training import poison_loss, with_policy, with_trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MAKE = {"pretrain": make_job, "kto": make_kto_job}


def run(job: Job, out: Path) -> StageResult:
    out.mkdir()
    return importlib.import_module(f"ladle.stages.{job.stage}").run(job.config, job.inputs, out)


def poison(monkeypatch: pytest.MonkeyPatch, stage: str, where: str, bad_steps: set[int]) -> None:
    """Make the loss (and what is logged of it), or the gradient alone, of some steps (from 1) not finite."""
    if where == "gradient":
        take_step = Training._take_step

        def take(self, number, rows):
            clip = self.parallel.clip

            def spoil_and_clip():
                if number in bad_steps:
                    next(p.grad for p in self.model.parameters() if p.grad is not None).view(-1)[0] = float("inf")
                return clip()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(self.parallel, "clip", spoil_and_clip)
                return take_step(self, number, rows)

        monkeypatch.setattr(Training, "_take_step", take)
    elif stage == "pretrain":
        poison_loss(monkeypatch, bad_steps)
    else:
        plain_loss = KtoTask._loss

        def loss(self, training, model, data, *args, **kwargs):
            if training.state.global_step + 1 in bad_steps:
                spoilt = dataclasses.replace(data.reference, logp_N=data.reference.logp_N * float("nan"))
                data = dataclasses.replace(data, reference=spoilt)
            return plain_loss(self, training, model, data, *args, **kwargs)

        monkeypatch.setattr(KtoTask, "_loss", loss)


def require_finite_files(out: Path) -> None:
    """Look into every tensor and every line of text that a training left."""
    for path in out.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path
    for path in out.rglob("optimizer.pt"):
        state = torch.load(path, weights_only=True)["optimizer"]["state"]
        assert all(value.isfinite().all() for entry in state.values() for value in entry.values()), path
    for path in [*out.rglob("*.json"), *out.rglob("*.jsonl")]:
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=lambda name, path=path: pytest.fail(f"{name} in {path}"))


@pytest.mark.parametrize("stage", MAKE)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_it_stops_before_the_optimizer_and_is_never_saved(stage, where, tmp_path, monkeypatch):
    job = with_trainer(MAKE[stage](tmp_path, "deepseek_v3", 1), save_steps=1, save_total_limit=50)
    poison(monkeypatch, stage, where, {6})
    with pytest.raises(CheckFailed, match=rf"step 6 gave a {where}.*Its rows: [\d, ]+.*checkpoint-5"):
        run(job, tmp_path / "out")
    assert [step_of(path) for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == list(range(1, 6))
    require_finite_files(tmp_path / "out")


@pytest.mark.parametrize("stage", MAKE)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_it_is_left_out_up_to_the_limit_and_touches_nothing(stage, where, tmp_path, monkeypatch):
    job = with_trainer(MAKE[stage](tmp_path, "deepseek_v3", 1), max_steps=12, save_steps=1, logging_steps=1)
    job = with_policy(with_trainer(job, save_total_limit=50), nan_policy="skip", nan_max_skips=2)
    poison(monkeypatch, stage, where, {5, 9})
    run(job, tmp_path / "out")
    folder = tmp_path / "out" / "checkpoints"
    weights = {step: load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in range(1, 13)}
    for step in range(2, 13):
        same = all(torch.equal(weights[step][name], weights[step - 1][name]) for name in weights[step])
        assert same == (step in {5, 9}), step
    require_finite_files(tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 10, "a step that was left out has no loss"
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert [row["skipped_steps"] for row in rows if "skipped_steps" in row][-1] == 2
