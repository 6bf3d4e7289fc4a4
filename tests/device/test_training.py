"""Training stages as on a GPU: no tensor is left on the host, a step waits at most three times, losses are a CPU's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ladle.data.store import IGNORED_LABEL
from ladle.errors import Preempted
from ladle.kto.data import Bin
from ladle.stage import Inputs
from ladle.stages import kto, pretrain
from ladle.training.config import PretrainConfig
from ladle.training.loop import Training
from ladle.training.packed_rows import one_document_a_row
from ladle.training.pretrain import PretrainTask, validation_loss
from tests.device.pretended import PretendedGpu, Sync
from tests.distributed.kto_job import make_config, make_inputs, run_reference
from tests.distributed.pretrain_job import make_job

STEPS, MOST_WAITS = 3, 3
TRAINER = {
    "max_steps": STEPS,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "eval_strategy": "steps",
    "eval_steps": STEPS,
}
PACKED_OR_NOT = "masking_utils.py"
"""transformers asks the device once a forward pass whether rows are packed, for every attention that has a mask."""
MASKED, BY_BORDERS = (), (torch.float32,)
"""What attention by borders takes: as CUDA's, no float32, so that rows are masked; or float32 too."""
RunStage = Callable[[Any, Inputs, Path], Any]


def log_of(run: RunStage, config: Any, inputs: Inputs, out: Path) -> dict[str, list[float]]:
    """Run a training and return its losses by name, step by step."""
    out.mkdir()
    run(config, inputs, out)
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    names = ("loss", "eval_loss", "grad_norm", "kl", "rewards/margins", "experts/sequence_aux_loss")
    found = {name: [row[name] for row in rows if name in row] for name in names}
    assert len(found["loss"]) == STEPS
    assert found["eval_loss"]
    return found


def waits_of_steps(monkeypatch: pytest.MonkeyPatch, gpu: PretendedGpu) -> list[list[Sync]]:
    """Return a list that is filled with the waits of each step, those for the log line between two steps left out."""
    found: list[list[Sync]] = []
    begins: list[int] = []
    log_evaluate_save = Training._log_evaluate_save

    def note(training: Training, stops: bool) -> None:
        found.extend(gpu.syncs[begin:] for begin in begins[-1:])
        log_evaluate_save(training, stops)
        begins.append(len(gpu.syncs))

    monkeypatch.setattr(Training, "_log_evaluate_save", note)
    return found


def require_few_waits(steps: list[list[Sync]], forward_passes: int) -> None:
    assert len(steps) == STEPS - 1
    for step in steps:
        by_transformers = [sync for sync in step if PACKED_OR_NOT in sync.place]
        assert len(by_transformers) <= forward_passes
        assert len(step) - len(by_transformers) <= MOST_WAITS, Counter(step)


@pytest.mark.parametrize(
    ("shape", "attention"), [("qwen3", MASKED), ("qwen3", BY_BORDERS), ("deepseek_v3", BY_BORDERS)]
)
def test_pretraining(shape, attention, tmp_path, monkeypatch):
    """With activations computed again, experts balanced by both means, and the loss on held-out rows."""
    job = make_job(tmp_path, shape)
    balancing = {"router_bias_update_rate": 1e-3, "sequence_aux_loss": 1e-4} if shape == "deepseek_v3" else {}
    trainer = job.config.trainer.values() | TRAINER | {"gradient_checkpointing": True}
    config = PretrainConfig.model_validate({"trainer": trainer, **balancing})
    on_cpu = log_of(pretrain.run, config, job.inputs, tmp_path / "cpu")
    with PretendedGpu(*attention) as gpu:
        steps = waits_of_steps(monkeypatch, gpu)
        on_gpu = log_of(pretrain.run, config, job.inputs, tmp_path / "gpu")
        assert gpu.syncs
        gpu.syncs.clear()
        trained = tmp_path / "gpu" / "model", job.inputs["mixture"][0]
        held_out, in_bfloat16 = validation_loss(*trained, dtype="float32"), validation_loss(*trained)
        assert gpu.syncs
    accumulation = config.trainer.get("gradient_accumulation_steps")
    require_few_waits(steps, forward_passes=0 if attention else accumulation)
    for name, values in on_cpu.items():
        assert on_gpu[name] == pytest.approx(values, rel=1e-4), name
    assert held_out == pytest.approx(on_gpu["eval_loss"][-1], rel=1e-4)
    assert held_out != in_bfloat16 == pytest.approx(held_out, rel=1e-2), "a GPU's default"


@pytest.mark.parametrize(
    ("shape", "attention"), [("qwen3", MASKED), ("qwen3", BY_BORDERS), ("deepseek_v3", BY_BORDERS)]
)
@pytest.mark.parametrize("adapter", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kto(shape, attention, adapter, tmp_path, monkeypatch):
    """The reference pass, steps with their z0, and the evaluation."""
    section = {"peft": {"r": 4}} if adapter else {}
    config = make_config(**TRAINER, **section)
    inputs = make_inputs(tmp_path, shape, 24)
    on_cpu = log_of(
        kto.run, config, inputs | {"reference": [run_reference(config, inputs, tmp_path / "r")]}, tmp_path / "cpu"
    )
    with PretendedGpu(*attention) as gpu:
        inputs["reference"] = [run_reference(config, inputs, tmp_path / "reference")]
        assert gpu.syncs
        steps = waits_of_steps(monkeypatch, gpu)
        on_gpu = log_of(kto.run, config, inputs, tmp_path / "gpu")
    # bins of the step's 8 rows, and of their mismatched pairs
    require_few_waits(steps, forward_passes=0 if attention else 16)
    for name, values in on_cpu.items():
        assert on_gpu[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name


def test_a_resumed_training_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """The optimizer's state is read onto the device."""
    job, take_step = make_job(tmp_path, "qwen3"), Training._take_step
    config = PretrainConfig.model_validate({"trainer": job.config.trainer.values() | TRAINER})
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    with PretendedGpu():
        whole = pretrain.run(config, job.inputs, tmp_path / "whole")
        monkeypatch.setattr(Training, "_take_step", lambda *step: take_step(*step) or step[1] == STEPS - 1)
        with pytest.raises(Preempted):
            pretrain.run(config, job.inputs, tmp_path / "stopped")
        monkeypatch.undo()
        resumed = pretrain.run(config, job.inputs, tmp_path / "stopped")
    assert resumed.counters["resumed_from_step"] == STEPS - 1
    assert resumed.metrics == whole.metrics


def test_documents_in_rows_of_their_own_are_found_by_waiting_once():
    """Which are labelled, and how long they are, of all rows together."""
    ids = torch.arange(48).reshape(3, 16)
    positions = torch.cat([torch.arange(size) for size in (5, 11, 16, 1, 9, 6)]).reshape(3, 16)
    labels = torch.where((ids >= 16) & (ids < 32), IGNORED_LABEL, ids)
    batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
    expected = one_document_a_row(batch)
    assert [tuple(part["input_ids"].shape) for part in expected] == [(4, 11)]
    with PretendedGpu() as gpu:
        on_gpu = {name: tensor.to("cuda") for name, tensor in batch.items()}
        gpu.syncs.clear()
        found = one_document_a_row(on_gpu)
        assert len(gpu.syncs) == 1, gpu.report()
        assert all(part["input_ids"].is_cuda for part in found)
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(one[name].cpu(), other[name]) for name in other)


def leave_targets_behind(one_bin: Bin, device: torch.device) -> Bin:
    moved = {name: value.to(device) for name, value in vars(one_bin).items() if isinstance(value, torch.Tensor)}
    return replace(one_bin, **moved | {"target_N": one_bin.target_N})


def test_a_kto_step_with_a_tensor_on_the_host_fails(tmp_path, monkeypatch):
    config, inputs = make_config(**TRAINER), make_inputs(tmp_path, "qwen3", 24)
    inputs["reference"] = [run_reference(config, inputs, tmp_path / "reference")]
    monkeypatch.setattr(Bin, "to", leave_targets_behind)
    with PretendedGpu(), pytest.raises(RuntimeError, match="on the same device"):
        log_of(kto.run, config, inputs, tmp_path / "gpu")


def test_a_pretraining_step_with_a_tensor_on_the_host_fails(tmp_path, monkeypatch):
    job, steps = make_job(tmp_path, "qwen3"), PretrainTask.steps

    def leave_labels_behind(*arguments: Any) -> Any:
        for step in steps(*arguments):
            yield [batch | {"labels": batch["labels"].cpu()} for batch in step]

    monkeypatch.setattr(PretrainTask, "steps", leave_labels_behind)
    config = PretrainConfig.model_validate({"trainer": job.config.trainer.values() | TRAINER})
    with PretendedGpu(), pytest.raises(RuntimeError, match="on the same device"):
        log_of(pretrain.run, config, job.inputs, tmp_path / "gpu")
