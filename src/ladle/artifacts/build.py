"""Building an artifact: lock, run the stage in `.partial`, record, flush, rename.

At every moment the final name either does not exist or holds the whole artifact. A killed build leaves
`NAME-FINGERPRINT.partial`, which the next build of the same step goes on from.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ladle.artifacts.files import fsync_path, fsync_tree, make_folder, pretty_json, write_text_durably
from ladle.artifacts.launcher import needs_torchrun
from ladle.artifacts.record import RECORD_NAME, is_complete, make_record, read_record
from ladle.artifacts.step import (
    HubRepository,
    LocalFiles,
    Step,
    StepInput,
    StepOutput,
    UnreadFiles,
    changed_meanwhile,
)
from ladle.artifacts.worker import run_in_processes
from ladle.errors import UserError
from ladle.executors import Shard
from ladle.log import get_logger
from ladle.stage import Inputs, StageResult, find_stage

logger = get_logger(__name__)


@dataclass(frozen=True)
class Workspace:
    """Where a recipe's artifacts stand: `<root>/<recipe name>/<stage>/<step>-<fingerprint>`, or where `placed` says."""

    folder: Path
    placed: tuple[tuple[str, Path], ...] = ()
    """(step name, folder) of steps that the user gave a folder of their own with --out."""

    def path_of(self, step: Step) -> Path:
        """Return the folder that the finished artifact of `step` has or will have."""
        for name, path in self.placed:
            if name == step.name:
                return path
        return self.folder / step.name.split("/")[0] / step.folder_name

    def partial_of(self, step: Step) -> Path:
        """Return the folder the step is built in; its name holds the fingerprint, so no other step resumes from it."""
        final = self.path_of(step)
        name = final.name if final.name == step.folder_name else f"{final.name}-{step.fingerprint[:12]}"
        return final.with_name(name + ".partial")


def build(step: Step, workspace: Workspace) -> Path:
    """Return the finished artifact's folder, running the stage where it is not there yet.

    Raises:
        UserError: the step is being built elsewhere, or its folder holds something else.
    """
    final = workspace.path_of(step)
    if is_complete(final, step.fingerprint):
        return final
    make_folder(final.parent)
    with _locked(final):
        if not is_complete(final, step.fingerprint):
            _refuse_occupied(final, step)
            _build_locked(step, workspace, final)
    return final


def _build_locked(step: Step, workspace: Workspace, final: Path) -> None:
    started = time.monotonic()
    partial = workspace.partial_of(step)
    partial.mkdir(exist_ok=True)
    (partial / RECORD_NAME).unlink(missing_ok=True)
    result = _run_stage(step, resolve_inputs(step, workspace), partial)
    digests = result.input_hashes
    step = step.settle(digests)
    _check_what_was_read(step, workspace, digests)
    inputs = {
        role: [_describe_input(item, workspace, final) for item in items] for role, items in sorted(step.inputs.items())
    }
    record = make_record(step, partial, inputs, result, time.monotonic() - started)
    fsync_tree(partial)
    write_text_durably(partial / RECORD_NAME, pretty_json(record))
    partial.rename(final)
    fsync_path(final.parent)


def _run_stage(step: Step, inputs: Inputs, out: Path) -> StageResult:
    processes = getattr(step.config, "processes", None)
    if processes is not None and needs_torchrun(processes):
        return run_in_processes(step.stage, step.config, inputs, out, processes)
    return find_stage(step.stage).run(step.config, inputs, out)


def build_shard(step: Step, workspace: Workspace, shard: Shard) -> None:
    """Work one share of a step whose stage can be shared out; the step itself is built once all shares are done.

    Shares are worked side by side, each by one process anywhere on the file system, in the step's `.partial`.

    Raises:
        UserError: the stage cannot be shared out, or this share is being worked elsewhere.
    """
    if is_complete(workspace.path_of(step), step.fingerprint):
        return
    run_shard = find_stage(step.stage).run_shard
    if run_shard is None:
        raise UserError(f"{step.name} cannot be shared out", "leave --shard out; mix, rollout and evaluate can")
    partial = workspace.partial_of(step)
    make_folder(partial)
    with _locked(partial.with_name(f"{partial.name}-{shard.index}-of-{shard.count}")):
        run_shard(step.config, resolve_inputs(step, workspace), partial, shard)


def _check_what_was_read(step: Step, workspace: Workspace, digests: Mapping[str, str]) -> None:
    """Raise if a file, by the hash the stage took while reading it, is not the one planned or made by a parent."""
    for item in (item for items in step.inputs.values() for item in items):
        for path, planned in _planned_hashes(item, workspace, digests):
            if digests.get(path, planned) != planned:
                raise changed_meanwhile(path)


def _planned_hashes(item: StepInput, workspace: Workspace, digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if isinstance(item, LocalFiles):
        yield from ((path, digest) for path, _, digest in item.files)
    if isinstance(item, StepOutput) and digests:
        folder = workspace.path_of(item.step)
        yield from ((str(folder / name), entry["blake3"]) for name, entry in read_record(folder)["files"].items())


def resolve_inputs(step: Step, workspace: Workspace) -> dict[str, list[Path]]:
    """Return the folders and files that the stage reads, by role, in order."""
    return {
        role: [path for item in items for path in _paths_of(item, workspace)] for role, items in step.inputs.items()
    }


def _paths_of(item: StepInput, workspace: Workspace) -> list[Path]:
    if isinstance(item, (LocalFiles, UnreadFiles)):
        return list(item.paths)
    if isinstance(item, HubRepository):
        from ladle.hub import snapshot

        return [snapshot(item.kind, item.repo_id, item.commit, item.file, item.patterns)]
    return _matches(workspace.path_of(item.step), item.glob)


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Return the folder itself, or what a glob picks inside it."""
    return sorted(folder.glob(pattern), key=natural_key) if pattern else [folder]


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Sort key by which checkpoint-900 comes before checkpoint-1000."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(path))]


def _describe_input(item: StepInput, workspace: Workspace, final: Path) -> dict[str, Any]:
    if isinstance(item, StepOutput):
        folder = workspace.path_of(item.step)
        record = read_record(folder)
        path = os.path.relpath(folder.resolve(), final.parent.resolve())
        return {"artifact": path, "fingerprint": record["fingerprint"], "digest": record["digest"], "glob": item.glob}
    if isinstance(item, LocalFiles):
        files = [{"path": str(Path(path).absolute()), "blake3": digest} for path, _, digest in item.files]
        return {"paths": [str(path.absolute()) for path in item.paths], "files": files}
    assert isinstance(item, HubRepository)  # nothing is unread once the stage has run
    return {"hub": item.kind, "repo_id": item.repo_id, "commit": item.commit, "file": item.file}


def recorded_paths(folder: Path, role: str) -> list[Path]:
    """Return the folders and files that a finished artifact's stage was given in one role, in order."""
    items = read_record(folder)["inputs"].get(role, [])
    return [path for item in items for path in _recorded_paths_of(item, folder)]


def _recorded_paths_of(item: dict[str, Any], folder: Path) -> list[Path]:
    if "paths" in item:
        return [Path(path) for path in item["paths"]]
    if "hub" in item:
        from ladle.hub import snapshot

        return [snapshot(item["hub"], item["repo_id"], item["commit"], item.get("file"))]
    return _matches((folder.resolve().parent / item["artifact"]).resolve(), item["glob"])


def _refuse_occupied(final: Path, step: Step) -> None:
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        if final.is_dir():
            final.rmdir()
        return
    if not (final / RECORD_NAME).is_file():
        raise UserError(f"{final} exists and is not an artifact of Ladle's", "name an empty folder with --out")
    if read_record(final)["fingerprint"] != step.fingerprint:
        raise UserError(
            f"{final} holds the artifact of other settings or inputs",
            f"name another folder with --out, or remove this one (`ladle show {final}` tells what it is)",
        )
    raise UserError(
        f"{final} is damaged: files of it are missing or have another size",
        f"`ladle verify {final}` names them; remove the folder to build it again",
    )


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Hold the artifact's lock; the kernel frees a dead holder's, so a crash never needs a hand."""
    lock = FileLock(final.with_name(f".{final.name}.lock"))
    holder = final.with_name(f".{final.name}.holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not Path(lock.lock_file).exists():
            raise UserError(
                f"nothing can be written in {final.parent}", "choose another place with --root or --out"
            ) from None
        who = json.loads(holder.read_text()) if holder.is_file() else {"host": "unknown", "pid": "unknown"}
        raise UserError(
            f"{final.name} is being built by process {who['pid']} on {who['host']}",
            "wait for it, or stop it and run this again",
        ) from None
    try:
        write_text_durably(holder, pretty_json({"host": socket.gethostname(), "pid": os.getpid()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(
            missing_ok=True
        )  # while held, so that nobody can lock a file that has lost its name
        lock.release()
