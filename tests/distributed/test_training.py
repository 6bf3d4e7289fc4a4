"""Training as it really runs: killed and resumed, in one process and in two, stopped by a signal, fed bad numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ladle.artifacts.record import describe_files, digest_of
from ladle.artifacts.worker import run_in_processes
from ladle.errors import CheckFailed, Preempted, UserError
from ladle.stage import StageResult
from ladle.training import loop, pretrain
from ladle.training import run as run_module
from ladle.training.checkpoint import list_checkpoints, strip_training_state
from ladle.training.loop import Training
from ladle.training.pretrain import PretrainTask
from tests.distributed import kill_training
from tests.distributed.pretrain_job import Job, make_job
from tests.training_runs import train

KILLS = int(os.environ.get("LADLE_KILLS", "4"))
SEED = int(os.environ.get("LADLE_KILL_SEED", random.SystemRandom().randrange(2**31)))
WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp": "FSDP", "zero2": "DeepSpeedEngine"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.mark.parametrize(
    ("shape", "processes", "dtype", "distributed"),
    [
        ("deepseek_v3", 1, "float32", "ddp"),
        ("deepseek_v3", 2, "float32", "ddp"),
        ("qwen3", 1, "bfloat16", "ddp"),
        ("qwen3", 2, "float32", "ddp"),
        ("deepseek_v3", 2, "bfloat16", "fsdp"),
        ("deepseek_v3", 2, "bfloat16", "zero2"),
        ("qwen3", 3, "float32", "ddp"),
    ],
)
def test_killed_training_ends_with_the_same_bytes(shape, processes, dtype, distributed):
    seen = kill_training.run_apart(shape, processes, KILLS, SEED, dtype, distributed)
    assert seen["kills"] >= KILLS, seen


def test_a_training_killed_while_it_seals_checkpoints_in_the_background_ends_with_the_same_bytes():
    seen = kill_training.run_apart("qwen3", 2, KILLS, SEED, save_in_background=True)
    assert seen["kills"] >= KILLS, seen


def test_a_checkpoint_that_cannot_be_sealed_in_the_background_stops_the_run(tmp_path, monkeypatch):
    job = with_policy(with_trainer(make_job(tmp_path, "qwen3"), max_steps=40), save_in_background=True)
    seal, main, threads = loop.checkpoints.seal, threading.get_ident(), set()

    def seal_or_fail(staged, folder):
        threads.add(threading.get_ident())
        if staged.name == "checkpoint-8":
            raise OSError(28, "No space left on device")
        return seal(staged, folder)

    monkeypatch.setattr(loop.checkpoints, "seal", seal_or_fail)
    with pytest.raises(OSError, match="No space left"):
        run_here(job, tmp_path / "out")
    assert main not in threads
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == ["checkpoint-4"]


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


@pytest.mark.parametrize("distributed", ["ddp", "fsdp", "zero2"])
@pytest.mark.parametrize("shape", ["qwen3", "deepseek_v3"])
def test_two_processes_train_as_one_with_twice_the_accumulation(shape, distributed, tmp_path):
    """Losses differ by rounding alone: 1e-6 over 20 steps of a dense model; an MoE's experts may flip, so one step.

    A float32 of 4 to 8 has steps of 4.8e-7.
    """
    job = with_trainer(
        make_job(tmp_path, shape, 1), max_steps=20, gradient_accumulation_steps=2, logging_steps=1, save_strategy="no"
    )
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        out.mkdir()
    pretrain.run(job.config, job.inputs, one)
    halved = with_processes(with_trainer(job, gradient_accumulation_steps=1), 2, distributed)
    summary = run_in_processes("pretrain", halved.config, halved.inputs, two, 2)
    assert summary.counters["processes"] == 2
    assert summary.metrics["wrapper"].startswith(WRAPPERS[distributed])
    steps = 20 if shape == "qwen3" else 1
    torch.testing.assert_close(losses(two)[:steps], losses(one)[:steps], rtol=0, atol=1e-6)


def test_the_rows_named_are_the_rows_trained_on(tmp_path):
    job, seen = make_job(tmp_path, "qwen3", 1), []

    class Recorder(pretrain.MixedDataset):
        def __getitem__(self, row):
            seen.append(row)
            return super().__getitem__(row)

    dataset = Recorder(job.inputs["mixture"][0])
    model = pretrain.load_model(job.inputs["model"][0])
    pretrain.use_linear_cross_entropy(model)
    trainer = with_trainer(job, save_strategy="no", max_steps=60).config.trainer.values()
    training = train(model, dataset, tmp_path, trainer)
    assert seen == [row for step in range(1, 61) for row in training.order.rows(step)]


def run_here(job: Job, out: Path) -> StageResult:
    out.mkdir()
    return pretrain.run(job.config, job.inputs, out)


def logged(out: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def test_training_reports_the_exact_held_out_loss(tmp_path):
    """Of each evaluation, in one process and in two; it changes no weight, and is the loss of the saved model."""
    job = with_trainer(make_job(tmp_path, "deepseek_v3"), max_steps=8, save_steps=4, save_strategy="steps")
    watched = with_trainer(job, eval_strategy="steps", eval_steps=4, per_device_eval_batch_size=3)
    run_here(job, tmp_path / "plain")
    summary = run_here(watched, tmp_path / "watched")
    assert describe_weights(tmp_path / "plain") == describe_weights(tmp_path / "watched")
    found = logged(tmp_path / "watched", "eval_loss")
    assert len(found) == 2
    for step, loss in zip((4, 8), found, strict=True):
        checkpoint = tmp_path / "watched" / "checkpoints" / f"checkpoint-{step}"
        assert pretrain.validation_loss(checkpoint, job.inputs["mixture"][0], batch_size=2) == pytest.approx(
            loss, rel=1e-6
        )
    assert summary.metrics["last_eval_loss"] == found[-1]
    two = with_processes(with_trainer(watched, gradient_accumulation_steps=1), 2, "ddp")
    out = tmp_path / "two"
    out.mkdir()
    run_in_processes("pretrain", two.config, two.inputs, out, 2)
    assert logged(out, "eval_loss")[0] == pytest.approx(found[0], abs=1e-3)


def describe_weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def poison_loss(monkeypatch, bad_steps: set[int]) -> None:
    """Make the loss of the first microbatch of some steps (from 1) NaN, gradients and all."""

    def passes(self, training, step):
        first, *others = original(self, training, step)
        is_bad = training.state.global_step + 1 in bad_steps
        return [lambda: first() * (float("nan") if is_bad else 1.0), *others]

    original = PretrainTask.passes
    monkeypatch.setattr(PretrainTask, "passes", passes)


def with_policy(job: Job, **policy: object) -> Job:
    return dataclasses.replace(job, config=job.config.model_copy(update=policy))


def test_an_optimizer_whose_package_is_absent_is_refused(tmp_path):
    job = with_trainer(make_job(tmp_path, "qwen3"), optim="schedule_free_adamw")
    with pytest.raises(UserError, match="trainer.optim=schedule_free_adamw cannot run here: .*schedulefree"):
        run_here(job, tmp_path / "out")


def test_one_bad_step_more_than_allowed_ends_the_run(tmp_path, monkeypatch):
    job = with_policy(with_trainer(make_job(tmp_path, "qwen3"), max_steps=12), nan_policy="skip", nan_max_skips=1)
    poison_loss(monkeypatch, {3, 7})
    with pytest.raises(CheckFailed, match="step 7 gave a loss of nan"):
        run_here(job, tmp_path / "out")


def test_signals_are_given_back_when_training_fails(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    poison_loss(monkeypatch, {2})
    with pytest.raises(CheckFailed):
        run_here(make_job(tmp_path, "qwen3"), tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_in_the_last_step_of_an_epoch_does_not_cost_the_epochs_checkpoint(tmp_path, monkeypatch):
    job = with_trainer(make_job(tmp_path, "qwen3"), num_train_epochs=2, max_steps=-1, save_strategy="epoch")
    job = with_trainer(job, save_total_limit=5, logging_steps=10)
    summary = run_here(job, tmp_path / "whole")
    epoch_steps = summary.counters["steps"] // 2
    take_step = Training._take_step

    def ask(self, number, rows):
        self.stop.is_asked = number == epoch_steps
        return take_step(self, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_take_step", ask)
        with pytest.raises(Preempted, match=f"stopped at step {epoch_steps} of {2 * epoch_steps}"):
            run_here(job, tmp_path / "stopped")
    pretrain.run(job.config, job.inputs, tmp_path / "stopped")
    names = [{path.name for path in (tmp_path / out / "checkpoints").iterdir()} for out in ("whole", "stopped")]
    assert names[0] == names[1] == {f"checkpoint-{epoch_steps}", f"checkpoint-{2 * epoch_steps}"}
    assert describe_weights(tmp_path / "whole") == describe_weights(tmp_path / "stopped")


def test_a_signal_says_where_nothing_is_kept_to_resume_from(tmp_path, monkeypatch):
    job = with_trainer(make_job(tmp_path, "qwen3"), max_steps=4, save_only_model=True)
    take_step = Training._take_step
    monkeypatch.setattr(Training, "_take_step", lambda *step: take_step(*step) or step[1] == 2)
    with pytest.raises(Preempted, match="stopped at step 2 of 4, saved; save_only_model keeps nothing"):
        run_here(job, tmp_path / "out")
    monkeypatch.undo()
    assert pretrain.run(job.config, job.inputs, tmp_path / "out").counters["steps"] == 4


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "adamw_torch_fused"])
def test_a_bfloat16_model_goes_on_exactly_with_any_optimizer(optim, tmp_path, monkeypatch):
    """Adafactor keeps float32 state beside bfloat16 weights, which torch would round on loading."""
    job = with_trainer(make_job(tmp_path, "deepseek_v3", dtype="bfloat16"), max_steps=8, save_steps=4, optim=optim)
    job = with_policy(job, pure_bf16=optim == "adafactor")
    whole = run_here(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        poison_loss(patch, {6})
        with pytest.raises(CheckFailed):
            run_here(job, tmp_path / "stopped")
    resumed = pretrain.run(job.config, job.inputs, tmp_path / "stopped")
    assert resumed.counters["resumed_from_step"] == 4
    assert resumed.metrics["optimizer_digest"] == whole.metrics["optimizer_digest"]
    assert describe_weights(tmp_path / "whole") == describe_weights(tmp_path / "stopped")


def test_resuming_with_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    job = with_trainer(make_job(tmp_path, "qwen3"), max_steps=8, save_steps=4)
    with monkeypatch.context() as patch:
        poison_loss(patch, {6})
        with pytest.raises(CheckFailed):
            run_here(job, tmp_path / "out")
    two = with_processes(job, 2, "ddp")
    with pytest.raises(UserError, match="checkpoint-4 was saved by 1 processes and 2 are running"):
        run_in_processes("pretrain", two.config, two.inputs, tmp_path / "out", 2)
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-4").is_dir()


def test_resuming_with_another_number_of_threads_warns(tmp_path, monkeypatch, caplog):
    job = with_trainer(make_job(tmp_path, "qwen3"), max_steps=8, save_steps=4)
    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        poison_loss(patch, {6})
        with pytest.raises(CheckFailed):
            run_here(job, tmp_path / "out")
    torch.set_num_threads(threads + 1)
    try:
        pretrain.run(job.config, job.inputs, tmp_path / "out")
    finally:
        torch.set_num_threads(threads)
    assert f"saved by {threads} threads per process and {threads + 1} are running" in caplog.text


def test_another_number_of_processes_than_the_recipes_is_refused(tmp_path):
    job = with_processes(make_job(tmp_path, "qwen3"), 2, "ddp")
    with pytest.raises(UserError, match="sets 2 processes per machine and 1 were started"):
        run_here(job, tmp_path / "out")


def test_zero2_stops_before_a_bad_step_too(tmp_path):
    """DeepSpeed alone would leave such a step out without a word. The learning rate makes it come."""
    job = with_processes(with_trainer(make_job(tmp_path, "qwen3"), learning_rate=1e30, max_grad_norm=0), 2, "zero2")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckFailed, match=r"step \d+ gave a (loss|gradient norm) of (nan|inf)"):
        run_in_processes("pretrain", job.config, job.inputs, tmp_path / "out", 2)
    for path in (tmp_path / "out").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, to be made smaller and larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def resize(disk: Path, size_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", disk], check=True)


@pytest.mark.parametrize("is_noticed_before", [True, False])
def test_a_disk_that_fills_up_costs_no_good_checkpoint(is_noticed_before, small_disk, tmp_path, monkeypatch):
    """Refused before a save, or met in the middle of one; with room again, the run ends as if nothing had happened."""
    job = with_trainer(make_job(tmp_path, "deepseek_v3"), max_steps=12, save_steps=4, report_to="none")
    whole = run_here(job, tmp_path / "whole")
    out, seal = small_disk / "out", loop.checkpoints.seal

    def fill_up_after(staged, folder):
        sealed = seal(staged, folder)
        used = shutil.disk_usage(small_disk).used
        resize(small_disk, used + (1_000_000 if is_noticed_before else 400_000))
        return sealed

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoints, "seal", fill_up_after)
        if not is_noticed_before:
            patch.setattr(loop.checkpoints, "require_free_space", lambda *arguments: None)
        with pytest.raises((UserError, OSError, RuntimeError, SafetensorError), match=r"free|No space|enforce|28"):
            run_here(job, out)
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["checkpoint-4"]
    resize(small_disk, 64 * 2**20)
    resumed = pretrain.run(job.config, job.inputs, out)
    assert resumed.counters["resumed_from_step"] == 4
    assert resumed.metrics["optimizer_digest"] == whole.metrics["optimizer_digest"]
    assert describe_weights(out) == describe_weights(tmp_path / "whole")


def test_a_kill_inside_the_final_save_leaves_nothing_of_it(tmp_path, monkeypatch):
    """safetensors writes under another name and renames; a uniform kill found the file in the final model's folder."""
    job = with_trainer(make_job(tmp_path, "qwen3"), max_steps=8, save_steps=4)
    run_here(job, tmp_path / "whole")

    plain_save = Training.save_weights

    def killed(self, out):
        if out.name != "model":
            return plain_save(self, out)
        out.mkdir()
        (out / ".tmpAb1xYz").write_bytes(b"half of the weights")
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save_weights", killed)
        with pytest.raises(ZeroDivisionError):
            run_here(job, tmp_path / "out")
    pretrain.run(job.config, job.inputs, tmp_path / "out")
    digests = [digest_of(describe_files(tmp_path / name), ("checkpoints/runs/*",)) for name in ("whole", "out")]
    assert digests[0] == digests[1]


def test_a_finished_training_is_never_trained_again(tmp_path, monkeypatch):
    """Killed while its checkpoints lost their training state: the next start only completes that."""
    job = with_trainer(make_job(tmp_path, "qwen3"), max_steps=8, save_steps=4)
    whole = run_here(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "leave_models_only", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_here(job, tmp_path / "out")
    strip_training_state(tmp_path / "out" / "checkpoints" / "checkpoint-8")
    monkeypatch.setattr(Training, "run", lambda self: 1 / 0)
    again = pretrain.run(job.config, job.inputs, tmp_path / "out")
    assert again.metrics == whole.metrics
    digests = [digest_of(describe_files(tmp_path / name), ("checkpoints/runs/*",)) for name in ("whole", "out")]
    assert digests[0] == digests[1]
