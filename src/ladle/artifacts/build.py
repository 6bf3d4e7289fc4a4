"""Building an artifact: lock, run the stage in `.partial`, record, flush, rename.

At every moment the final name either does not exist or holds the whole artifact. A killed build leaves
`NAME-FINGERPRINT.partial`, from which the next build of the same step resumes.
"""

from __future__ import annotations

import ctypes
import gc
import glob
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ladle.artifacts.files import fsync_path, fsync_tree, make_folder, pretty_json, write_text_durably
from ladle.artifacts.inputs import HubRepository, LocalFiles, changed_meanwhile, natural_key
from ladle.artifacts.record import RECORD_NAME, UNFINISHED_NAME, is_complete, make_record, read_record
from ladle.artifacts.step import Step, StepInput, StepOutput
from ladle.artifacts.worker import needs_torchrun, run_in_processes
from ladle.errors import UserError
from ladle.executors import Shard
from ladle.hub import snapshot
from ladle.log import REPORTS_TO
from ladle.stage import Inputs, StageResult, run_stage


class TrackedRun(NamedTuple):
    """What trackers know of a recipe's run.

    Attributes:
        trackers: those of any of its trainings.
        project: what they keep it under.
        name: equal for all steps of a recipe with the same settings and inputs.
        folder: where those that write files write them.
    """

    trackers: list[str]
    project: str
    name: str
    folder: str


@dataclass(frozen=True)
class Workspace:
    """Where a recipe's artifacts are: `<root>/<recipe name>/<stage>/<step>-<fingerprint>`, or where `placed` says."""

    folder: Path
    placed: tuple[tuple[str, Path], ...] = ()
    """(step name, folder) of steps that the user gave a folder of their own with --out."""
    tracked: TrackedRun | None = None

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
    """Return the finished artifact's folder; runs the stage if it is not there yet.

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
    unfinished = {"name": step.name, "identity": step.identity, "tracked": workspace.tracked}
    write_text_durably(partial / UNFINISHED_NAME, pretty_json(unfinished))
    inputs = _resolve_inputs(step, workspace)
    processes = getattr(step.config, "processes", None)
    try:
        if processes is not None and needs_torchrun(processes):
            result = run_in_processes(step.stage.name, step.config, inputs, partial, processes)
        else:
            result = run_stage(step.stage, step.config, inputs, partial)
    except UserError:
        if all(path.is_dir() or path.name == UNFINISHED_NAME for path in partial.rglob("*")):
            shutil.rmtree(partial)  # nothing to resume from
        raise
    (partial / UNFINISHED_NAME).unlink(missing_ok=True)  # some stages clear their folder
    _give_back_memory()
    step = step.settle(result.input_hashes)
    described = {
        role: [_describe_input(item, role, workspace, final, result) for item in items]
        for role, items in sorted(step.inputs.items())
    }
    record = make_record(step, partial, described, result, time.monotonic() - started)
    fsync_tree(partial)
    write_text_durably(partial / RECORD_NAME, pretty_json(record))
    partial.rename(final)
    fsync_path(final.parent)


def _give_back_memory() -> None:
    """Free what a stage leaves behind, such as the models of a training: cycles, and pages that the C library keeps."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None:
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def build_shard(step: Step, workspace: Workspace, shard: Shard) -> None:
    """Work one share of a step; the step itself is built once all shares are done.

    Shares are worked side by side, each by one process anywhere on the file system, in the step's `.partial`.

    Raises:
        UserError: the stage is one piece, or this share is being worked elsewhere.
    """
    if is_complete(workspace.path_of(step), step.fingerprint):
        return
    if step.stage.run_shard is None:
        raise UserError(f"{step.name} cannot be split into shards", "leave --shard out")
    partial = workspace.partial_of(step)
    make_folder(partial)
    with _locked(partial.with_name(f"{partial.name}-{shard.index}-of-{shard.count}")):
        step.stage.run_shard(step.config, _resolve_inputs(step, workspace), partial, shard)


def _resolve_inputs(step: Step, workspace: Workspace) -> Inputs:
    """Return the folders and files that the stage reads, by role, in order."""
    return {
        role: [path for item in items for path in input_paths(item, workspace)] for role, items in step.inputs.items()
    }


def input_paths(item: StepInput, workspace: Workspace) -> list[Path]:
    """Return the folders and files that an input stands for, in order; what the Hub has is fetched."""
    if isinstance(item, LocalFiles):
        return list(item.paths)
    if isinstance(item, HubRepository):
        return [snapshot(item.kind, item.repo_id, item.commit, item.file, item.patterns)]
    return _matches(workspace.path_of(item.step), item.glob)


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Return the folder itself, or what a glob picks inside it."""
    return sorted(folder.glob(pattern), key=natural_key) if pattern else [folder]


def _describe_input(
    item: StepInput, role: str, workspace: Workspace, final: Path, result: StageResult
) -> dict[str, Any]:
    """Return what a record says of an input; of local files, those read, if the stage says which.

    Raises:
        UserError: a hash that the stage took as it read is not that of the plan, or of the parent's record.
    """
    if isinstance(item, StepOutput):
        folder = workspace.path_of(item.step)
        record = read_record(folder)
        _refuse_changed({str(folder / name): one["blake3"] for name, one in record["files"].items()}, result)
        path = os.path.relpath(folder.resolve(), final.parent.resolve())
        return {"artifact": path, "fingerprint": record["fingerprint"], "digest": record["digest"], "glob": item.glob}
    if isinstance(item, LocalFiles):
        _refuse_changed({file.path: file.digest for file in item.files}, result)
        read = {*map(Path.absolute, result.files_read.get(role, ()))}
        hashed = {Path(file.path).absolute(): file.digest for file in item.files}
        taken = [path for path in hashed if not read or not read.isdisjoint((path, path.parent))]
        files = [{"path": str(path), "blake3": hashed[path]} for path in taken]
        return {"paths": [str(path.absolute()) for path in item.paths], "files": files}
    return {"hub": item.kind, "repo_id": item.repo_id, "commit": item.commit, "file": item.file}


def _refuse_changed(planned: Mapping[str, str | None], result: StageResult) -> None:
    for path in planned.keys() & result.input_hashes.keys():
        if result.input_hashes[path] != planned[path]:
            raise changed_meanwhile(path)


def builders_of(final: Path) -> list[dict[str, Any]]:
    """Return host, pid and the time since which they work of those who build an artifact, or shares of it.

    Of this machine only those that live count; another's may have died without a trace.
    """
    found = _read_beside(final, "holder")
    return [one for one in found if one["host"] != socket.gethostname() or Path(f"/proc/{one['pid']}").exists()]


def reports_of(final: Path) -> list[str]:
    """Return what the processes that build an artifact last said of their progress (`ladle.log.ProgressBar`)."""
    return _read_beside(final, "progress")


def _read_beside(final: Path, suffix: str) -> list[Any]:
    found = []
    for path in final.parent.glob(f".{glob.escape(final.name)}.*{suffix}"):
        with suppress(FileNotFoundError):  # it is over
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def resumption(step: Step, workspace: Workspace) -> str:
    """Return how a step that was stopped goes on."""
    if (pattern := step.stage.resumes_from) is None:
        return "resumes from what it had finished"
    saved = sorted(workspace.partial_of(step).glob(pattern), key=natural_key)
    return f"resumes from {saved[-1].name}" if saved else "begins again: it had saved no checkpoint"


def recorded_paths(folder: Path, role: str) -> list[Path]:
    """Return the folders and files that a finished artifact's stage was given in one role, in order."""
    paths: list[Path] = []
    for item in read_record(folder)["inputs"].get(role, []):
        if "paths" in item:
            paths += [Path(path) for path in item["paths"]]
        elif "hub" in item:
            paths.append(snapshot(item["hub"], item["repo_id"], item["commit"], item.get("file")))
        else:
            paths += _matches((folder.resolve().parent / item["artifact"]).resolve(), item["glob"])
    return paths


def _refuse_occupied(final: Path, step: Step) -> None:
    if final.is_dir() and not any(final.iterdir()):
        final.rmdir()
    if not final.exists():
        return
    if not (final / RECORD_NAME).is_file():
        raise UserError(f"{final} exists and is not an artifact of Ladle", "name an empty folder with --out")
    problem = f"{final} is damaged: files of it are missing or have another size"
    fix = f"`ladle verify {final}` names them; remove the folder to build it again"
    if read_record(final)["fingerprint"] != step.fingerprint:
        problem = f"{final} holds the artifact of other settings or inputs"
        fix = f"name another folder with --out, or remove this one (`ladle show {final}` prints what it is)"
    raise UserError(problem, fix)


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Hold the artifact's lock; the kernel frees a dead holder's, so a crash needs no clean-up by hand."""
    beside = final.with_name(f".{final.name}")
    lock, holder = FileLock(f"{beside}.lock"), Path(f"{beside}.holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not Path(lock.lock_file).exists():
            problem = f"nothing can be written in {final.parent}"
            raise UserError(problem, "choose another place with --root or --out") from None
        who = json.loads(holder.read_text()) if holder.is_file() else {"host": "unknown", "pid": "unknown"}
        problem = f"{final.name} is being built by process {who['pid']} on {who['host']}"
        raise UserError(problem, "wait for it, or stop it and run this again") from None
    try:
        for report in beside.parent.glob(f"{glob.escape(beside.name)}.*progress"):  # of a process that was killed
            report.unlink()
        who = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        write_text_durably(holder, pretty_json(who))
        os.environ[REPORTS_TO] = str(beside.absolute())
        yield
    finally:
        os.environ.pop(REPORTS_TO, None)
        holder.unlink(missing_ok=True)
        # while held, so that nobody can lock a file that has lost its name
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
