"""Checkpoints that are whole or not there: sealed by a manifest, renamed into place, verified before they are trusted.

A checkpoint is written into `.saving/`, flushed, given `checkpoint.json` (size and blake3 of every file), and renamed
to `checkpoint-<step>`. Resuming takes the newest one that verifies. Older ones lose their training state (optimizer,
scheduler, RNG) or go altogether, and only once the newer one has been read back and verified.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ladle.artifacts.files import (
    fsync_path,
    fsync_tree,
    hash_file,
    link_or_copy,
    list_files,
    pretty_json,
    readable_size,
    replace_durably,
)
from ladle.errors import CheckFailed, UserError
from ladle.log import get_logger
from ladle.training.config import TrainingConfig

logger = get_logger(__name__)

MANIFEST = "checkpoint.json"
STAGING = ".saving"
TRACKER_LOGS = "runs"
PREFIX = "checkpoint-"
TRAINING_STATE_FOLDER = "training_state"
"""Beside a finished training's `checkpoints/`: its last one, whole, for a training that extends it."""
PREEMPTED = "preempted.json"
TRAINING_STATE = (
    "optimizer*", "scheduler.*", "scaler.*", "rng_state*", "progress_*.json", "trainer_state.json", "training_args.bin",
    "shards", "latest", "zero_to_*.py", "global_step*",
)  # fmt: skip
"""What only resuming needs (the last three are DeepSpeed's), often twice the model's size; without it a checkpoint is a
model-only copy."""


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step that `checkpoint-<step>` was saved at."""
    return int(checkpoint.name.removeprefix(PREFIX))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first, valid or not."""
    found = [path for path in folder.glob(PREFIX + "*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def seal(staged: Path, folder: Path) -> Path:
    """Make a written checkpoint durable under its final name, read it back, and return its path.

    Raises:
        CheckFailed: what the disk gave back is not what was written.
    """
    manifest = {path.relative_to(staged).as_posix(): _describe(path) for path in list_files(staged)}
    (staged / MANIFEST).write_text(pretty_json(manifest), encoding="utf-8")
    fsync_tree(staged)
    final = folder / staged.name
    if final.exists():
        shutil.rmtree(final)
    staged.rename(final)
    fsync_path(folder)
    if fault := find_fault(final):
        problem = f"{final} was written and does not verify ({fault})"
        raise CheckFailed(f"{problem}: check the disk; older checkpoints were kept")
    return final


def _describe(path: Path) -> dict[str, int | str]:
    return {"size_bytes": path.stat().st_size, "blake3": hash_file(path)}


def find_fault(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be trusted, or None if every file is as its manifest says."""
    if not (checkpoint / MANIFEST).is_file():
        return f"it has no {MANIFEST}, so it was never finished"
    entries = _read_manifest(checkpoint)
    for name, entry in entries.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _describe(checkpoint / name) != entry:
            return f"{name} is damaged"
    return None if entries else f"its {MANIFEST} is damaged"


def newest_resumable(folder: Path) -> Path | None:
    """Return the newest whole checkpoint with its training state; logs which newer ones were skipped, and why."""
    for checkpoint in reversed(list_checkpoints(folder)):
        if fault := find_fault(checkpoint):
            logger.warning("skipping %s: %s", checkpoint.name, fault)
        elif not is_resumable(checkpoint):
            logger.info("skipping %s: it holds the model only", checkpoint.name)
        else:
            return checkpoint
    return None


def is_resumable(checkpoint: Path) -> bool:
    """Return whether a checkpoint's manifest lists training state beside the model."""
    names = _read_manifest(checkpoint)
    return "trainer_state.json" in names and any(name.startswith("rng_state") for name in names)


def is_preempted(checkpoint: Path) -> bool:
    """Return whether a checkpoint was saved because a signal stopped the run, off the recipe's schedule."""
    return PREEMPTED in _read_manifest(checkpoint)


def _read_manifest(checkpoint: Path) -> dict[str, dict]:
    try:
        return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def refuse_strangers(folder: Path) -> None:
    """Check that a folder of checkpoints holds none but its own folders, since all that is in it becomes the result.

    Raises:
        UserError: another one is there.
    """
    own = {STAGING, TRACKER_LOGS, *(path.name for path in list_checkpoints(folder))}
    strangers = sorted(path.name for path in folder.glob("*") if path.is_dir() and path.name not in own)
    if strangers:
        raise UserError(f"{folder} holds {strangers[0]}, which no training put there", "move it elsewhere")


def remove_unfinished(folder: Path, after_step: int) -> None:
    """Remove what a killed run left half-written, and every checkpoint later than the step to resume from.

    Files that a manifest does not list go too: training state whose removal a crash cut short.
    """
    refuse_strangers(folder)
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    for checkpoint in list_checkpoints(folder):
        if step_of(checkpoint) > after_step or find_fault(checkpoint):
            shutil.rmtree(checkpoint)
            continue
        listed = {MANIFEST, *_read_manifest(checkpoint)}
        for path in list_files(checkpoint):
            if path.relative_to(checkpoint).as_posix() not in listed:
                path.unlink()


def rotate(folder: Path, config: TrainingConfig) -> None:
    """Turn older checkpoints into model-only copies, then remove the oldest copies, as `save_total_limit` and
    `keep_models` say.

    The newest checkpoint always stays whole. One that only a preemption made goes as soon as a newer one exists,
    so that it never shows in the result.
    """
    for checkpoint in list_checkpoints(folder)[:-1]:
        if is_preempted(checkpoint):
            remove_checkpoint(checkpoint)
    resumable, models = config.trainer.get("save_total_limit"), config.keep_models
    if resumable is None:
        return
    older = list_checkpoints(folder)[: -max(1, resumable)]
    for checkpoint in filter(is_resumable, older):
        strip_training_state(checkpoint)
    if models is not None:
        for checkpoint in older[: max(0, len(older) - models)]:
            remove_checkpoint(checkpoint)


def strip_training_state(checkpoint: Path) -> None:
    """Turn a checkpoint into a model-only copy.

    Its manifest goes first, so that a crash leaves it valid or recognisably unfinished.
    """
    state = [path for pattern in TRAINING_STATE for path in checkpoint.glob(pattern)]
    removed = {path.name for path in state}
    kept = {name: entry for name, entry in _read_manifest(checkpoint).items() if name.split("/")[0] not in removed}
    temporary = checkpoint / (MANIFEST + ".tmp")  # of a fixed name, so that a crash leaves nothing that stays
    temporary.write_text(pretty_json(kept), encoding="utf-8")
    replace_durably(temporary, checkpoint / MANIFEST)
    for path in state:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    fsync_path(checkpoint)


def leave_models_only(folder: Path, config: TrainingConfig) -> None:
    """Turn every checkpoint of a finished training into a model-only copy; a crash in between can be repaired."""
    refuse_strangers(folder)
    rotate(folder, config)  # what a crash may have cut short
    for checkpoint in list_checkpoints(folder):
        if is_preempted(checkpoint):
            remove_checkpoint(checkpoint)
        else:
            strip_training_state(checkpoint)
    shutil.rmtree(folder / STAGING, ignore_errors=True)


def keep_training_state(folder: Path, out: Path) -> None:
    """Keep the newest whole checkpoint of a folder in an artifact, as it is, by links where links can be made."""
    newest, kept = newest_resumable(folder), out / TRAINING_STATE_FOLDER
    shutil.rmtree(kept, ignore_errors=True)
    if newest is not None:
        for path in list_files(newest):
            link_or_copy(path, kept / path.relative_to(folder))
        fsync_tree(kept)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, never leaving a part of it that verifies."""
    (checkpoint / MANIFEST).unlink()  # first, so that a crash half-way leaves nothing that verifies
    shutil.rmtree(checkpoint)


def require_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse to start writing what the disk cannot hold.

    Raises:
        UserError: less than `needed_bytes` is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        problem = f"{what} needs {readable_size(needed_bytes)}, and {folder} has {readable_size(free)} free"
        fix = "free some space (an older run's checkpoints?), or lower trainer.save_total_limit, and run it again"
        raise UserError(problem, fix)
