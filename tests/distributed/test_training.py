"""Training as it really runs: killed and resumed, in one process and in two, stopped by a signal, fed bad numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ladle.artifacts.worker import run_in_processes
from ladle.errors import CheckFailed
from ladle.stages import pretrain
from ladle.training import trainer as trainer_module
from ladle.training.checkpoint import list_checkpoints
from tests.distributed import kill_training
from tests.distributed.kill_training import Job, make_job

KILLS = int(os.environ.get("LADLE_KILLS", "4"))
SEED = int(os.environ.get("LADLE_KILL_SEED", random.SystemRandom().randrange(2**31)))
WRAPPERS = {"ddp": "DistributedDataParallel", "zero2": "DeepSpeedEngine"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.mark.parametrize(
    ("shape", "processes", "dtype", "distributed"),
    [
        ("deepseek_v3", 1, "float32", "ddp"),
        ("deepseek_v3", 2, "float32", "ddp"),
        ("qwen3", 1, "bfloat16", "ddp"),
        ("qwen3", 2, "float32", "ddp"),
        ("deepseek_v3", 2, "bfloat16", "zero2"),
    ],
)
def test_killed_training_ends_with_the_same_bytes(shape, processes, dtype, distributed):
    seen = kill_training.run_apart(shape, processes, KILLS, SEED, dtype, distributed)
    assert seen["kills"] >= KILLS, seen
    assert seen["resumes"] >= 1, seen


def with_trainer(job: Job, **arguments: object) -> Job:
    values = job.config.trainer.values() | arguments
    config = job.config.model_copy(update={"trainer": type(job.config.trainer).model_validate(values)})
    return dataclasses.replace(job, config=config)


def with_processes(job: Job, processes: int, distributed: str) -> Job:
    update = {"processes": processes, "distributed": distributed}
    return dataclasses.replace(job, config=job.config.model_copy(update=update))


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("distributed", ["ddp", "zero2"])
@pytest.mark.parametrize("shape", ["qwen3", "deepseek_v3"])
def test_two_processes_train_as_one_with_twice_the_accumulation(shape, distributed, tmp_path):
    """Losses differ by rounding alone: 1e-6 over 20 steps of a dense model; an MoE's experts may flip, so one step."""
    job = with_trainer(
        make_job(tmp_path, shape, 1), max_steps=20, gradient_accumulation_steps=2, logging_steps=1, save_strategy="no"
    )
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        out.mkdir()
    pretrain.run(job.config, job.inputs, one)
    halved = with_processes(with_trainer(job, gradient_accumulation_steps=1), 2, distributed)
    summary = run_in_processes("pretrain", halved.config, halved.inputs, two, 2)
    assert summary["counters"]["processes"] == 2
    assert summary["metrics"]["wrapper"] == WRAPPERS[distributed]
    steps = 20 if shape == "qwen3" else 1
    torch.testing.assert_close(losses(two)[:steps], losses(one)[:steps], rtol=0, atol=1e-6 * max(losses(one)))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_optimizer_and_is_never_saved(where, tmp_path, monkeypatch):
    job = with_trainer(make_job(tmp_path, "deepseek_v3", 1), save_steps=1, save_total_limit=50)
    bad_step = 6

    def poison(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step == bad_step - 1:
            if where == "loss":
                return loss * float("nan")
            next(self.model.parameters()).grad[0, 0] = float("inf")
        return loss

    original = trainer_module.Trainer.training_step
    monkeypatch.setattr(trainer_module.Trainer, "training_step", poison)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        CheckFailed, match=rf"step {bad_step} gave a {where}.*Its rows: [\d, ]+.*checkpoint-{bad_step - 1}"
    ):
        pretrain.run(job.config, job.inputs, out)
    assert [kill_training.step_of(path) for path in list_checkpoints(out / "checkpoints")] == list(range(1, bad_step))
    for path in out.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path
    for path in out.rglob("optimizer.pt"):
        state = torch.load(path, weights_only=True)["state"]
        assert all(value.isfinite().all() for entry in state.values() for value in entry.values())


def test_the_rows_named_are_the_rows_trained_on(tmp_path):
    job = make_job(tmp_path, "qwen3", 1)
    seen: list[list[int]] = []

    class Recorder(pretrain.MixedDataset):
        def __getitem__(self, row):
            seen[-1].append(row) if seen and len(seen[-1]) < 4 else seen.append([row])
            return super().__getitem__(row)

    dataset = Recorder(job.inputs["mixture"][0])
    arguments = pretrain.make_arguments(with_trainer(job, save_strategy="no", max_steps=35).config, tmp_path)
    trainer = pretrain.LadleTrainer(
        model=pretrain.load_model(job.inputs["model"][0]),
        args=arguments,
        train_dataset=dataset,
        data_collator=pretrain.collate_packed,
        keep=pretrain.Rotation(),
        rows_are_shuffled=True,
        router_bias_update_rate=0.0,
    )
    trainer.train_or_resume()
    flat = [row for group in seen for row in group]
    expected = [row for step in range(1, 36) for row in trainer.rows_of_step(step)]
    assert flat[: len(expected)] == expected
