from __future__ import annotations

from pathlib import Path

import pytest

from ladle.artifacts.files import list_files
from ladle.errors import UserError
from ladle.training.checkpoint import (
    MANIFEST,
    PREEMPTED,
    STAGING,
    find_fault,
    is_resumable,
    leave_models_only,
    list_checkpoints,
    newest_resumable,
    remove_unfinished,
    require_free_space,
    rotate,
    seal,
    step_of,
    strip_training_state,
)
from ladle.training.config import TrainingConfig

MODEL = {"model.safetensors": "weights", "config.json": "{}"}
STATE = {
    "optimizer.pt": "moments",
    "rng_state.pth": "rng",
    "trainer_state.json": "{}",
    "progress_0.json": "{}",
}


def keeping(whole: int | None = None, models: int | None = None) -> TrainingConfig:
    """A section that keeps so many checkpoints."""
    return TrainingConfig.model_validate({"keep_models": models, "trainer": {"save_total_limit": whole}})


def save(folder: Path, step: int, **extra: str) -> Path:
    staged = folder / STAGING / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    for name, text in (MODEL | STATE | extra).items():
        (staged / name).write_text(f"{text} of {step}" if name in MODEL else text)
    return seal(staged, folder)


def steps(folder: Path) -> dict[int, bool]:
    """Step to whether the checkpoint is resumable."""
    return {step_of(path): is_resumable(path) for path in list_checkpoints(folder)}


def test_a_sealed_checkpoint_verifies_and_is_resumed(tmp_path):
    save(tmp_path, 8)
    newest = save(tmp_path, 16)
    assert find_fault(newest) is None
    assert newest_resumable(tmp_path) == newest


# The five ways in which upstream's half-written checkpoints came about
# (killed before, in and after the weights, a full disk, NaN aside).
FAULTS = {
    "killed before the manifest": lambda folder: (folder / MANIFEST).unlink(),
    "killed inside the weights": lambda folder: (folder / "model.safetensors").write_text("wei"),
    "killed before the RNG state": lambda folder: (folder / "rng_state.pth").unlink(),
    "killed before the trainer state": lambda folder: (folder / "trainer_state.json").unlink(),
    "a full disk cut the optimizer": lambda folder: (folder / "optimizer.pt").write_text(""),
    "a damaged manifest": lambda folder: (folder / MANIFEST).write_text("{"),
    "one flipped bit": lambda folder: (folder / "optimizer.pt").write_bytes(b"Moments"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_newest_checkpoint_is_passed_over_and_the_good_one_kept(fault, tmp_path, caplog):
    good, bad = save(tmp_path, 8), save(tmp_path, 16)
    FAULTS[fault](bad)
    with caplog.at_level("WARNING", logger="ladle"):
        assert newest_resumable(tmp_path) == good
    remove_unfinished(tmp_path, 8)
    assert list_checkpoints(tmp_path) == [good]
    assert find_fault(good) is None


def test_rotation_keeps_the_newest_whole_and_older_ones_as_models(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
        rotate(tmp_path, keeping(2))
    assert steps(tmp_path) == {1: False, 2: False, 3: True, 4: True}
    assert all(find_fault(path) is None for path in list_checkpoints(tmp_path))
    assert {path.name for path in list_files(tmp_path / "checkpoint-1")} == {*MODEL, MANIFEST}


def test_rotation_removes_model_copies_past_their_limit(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
        rotate(tmp_path, keeping(1, models=1))
    assert steps(tmp_path) == {4: False, 5: True}


@pytest.mark.parametrize("stripped", [[], [3], [4], [5], [4, 5]])
def test_rotation_ends_the_same_whatever_a_crash_left_of_it(stripped, tmp_path):
    """Killed before a rotation removed its oldest copy, or while the last checkpoints were being stripped."""
    for step in (3, 4, 5):
        save(tmp_path, step)
    for step in stripped:
        strip_training_state(tmp_path / f"checkpoint-{step}")
    rotate(tmp_path, keeping(2, models=0))
    assert list(steps(tmp_path)) == [4, 5]


def test_a_preempted_checkpoint_goes_once_a_newer_one_exists(tmp_path):
    save(tmp_path, 10)
    preempted = save(tmp_path, 13, **{PREEMPTED: "{}"})
    rotate(tmp_path, keeping())
    assert newest_resumable(tmp_path) == preempted
    save(tmp_path, 20)
    rotate(tmp_path, keeping())
    assert list(steps(tmp_path)) == [10, 20]


def test_a_strip_cut_short_is_completed(tmp_path):
    folder = save(tmp_path, 1)
    strip_training_state(folder)
    (folder / "optimizer.pt").write_text("left by a crash")
    assert not is_resumable(folder)
    remove_unfinished(tmp_path, 1)
    assert {path.name for path in list_files(folder)} == {*MODEL, MANIFEST}


def test_staging_and_later_checkpoints_are_removed_before_training_goes_on(tmp_path):
    save(tmp_path, 8)
    save(tmp_path, 16)
    (tmp_path / STAGING / "checkpoint-24").mkdir(parents=True)
    remove_unfinished(tmp_path, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


def test_a_disk_that_is_too_small_is_refused_with_both_figures(tmp_path):
    with pytest.raises(UserError, match=r"a checkpoint needs 1,000,000,000 GB, and .* has [\d.,]+ \w+ free"):
        require_free_space(tmp_path, 10**18, "a checkpoint")


def test_a_folder_of_somebody_elses_is_refused_and_left(tmp_path):
    save(tmp_path, 8)
    for name in ("runs", "notes"):
        (tmp_path / name).mkdir()
    for tidy in (lambda: remove_unfinished(tmp_path, 8), lambda: leave_models_only(tmp_path, keeping())):
        with pytest.raises(UserError, match="holds notes, which no training put there"):
            tidy()
    (tmp_path / "notes").rmdir()
    leave_models_only(tmp_path, keeping())
    assert steps(tmp_path) == {8: False}
