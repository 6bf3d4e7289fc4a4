"""Half-written checkpoints, as saves of upstream leave them when cut short: training resumes from the good one before.

The cases are those in which transformers 5.23's Trainer crashed on resuming: killed before, inside and after the
weights, before the RNG state, before the trainer's state.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ladle.errors import CheckFailed
from ladle.stages import pretrain
from ladle.training.checkpoint import MANIFEST, find_fault, list_checkpoints
from tests.distributed.pretrain_job import make_job
from tests.distributed.test_training import describe_weights, poison_loss, run_here, with_trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# in the order in which they are written; a save that is cut short leaves those before
WRITTEN = ("config.json", "model.safetensors", "optimizer.pt", "rng_state_0.pth", "trainer_state.json")
CUTS = {
    "before the weights": ("model.safetensors", False),
    "inside the weights": ("model.safetensors", True),
    "after the weights": ("optimizer.pt", False),
    "before the RNG state": ("rng_state_0.pth", False),
    "before the trainer state": ("trainer_state.json", False),
}


def cut_short(checkpoint: Path, name: str, keep_half: bool) -> None:
    """Leave of a checkpoint what a save had written that ended at a file; nothing was sealed."""
    (checkpoint / MANIFEST).unlink()
    for later in WRITTEN[WRITTEN.index(name) :]:
        path = checkpoint / later
        if later == name and keep_half:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()


@pytest.mark.parametrize("cut", CUTS)
def test_training_resumes_from_the_good_one_before(cut, tmp_path, monkeypatch):
    job = with_trainer(make_job(tmp_path, "deepseek_v3"), max_steps=12, save_steps=4, save_total_limit=2)
    whole = run_here(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        poison_loss(patch, {10})
        with pytest.raises(CheckFailed):
            run_here(job, tmp_path / "out")
    good, bad = list_checkpoints(tmp_path / "out" / "checkpoints")
    cut_short(bad, *CUTS[cut])
    with monkeypatch.context() as patch:
        # stopped again before the next save: the good one must still be there
        poison_loss(patch, {6})
        with pytest.raises(CheckFailed):
            pretrain.run(job.config, job.inputs, tmp_path / "out")
    assert find_fault(good) is None
    resumed = pretrain.run(job.config, job.inputs, tmp_path / "out")
    assert resumed.counters["resumed_from_step"] == 4
    assert resumed.metrics["optimizer_digest"] == whole.metrics["optimizer_digest"]
    assert describe_weights(tmp_path / "out") == describe_weights(tmp_path / "whole")
