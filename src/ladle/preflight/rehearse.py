"""The rehearsal: the recipe in miniature, each step in a process of its own; a training is killed and resumes.

Each stage makes its own section small: the same model, rows, tokenizer and stages, with next to no amounts. What is not
shown at its true size is listed. Everything is in `ROOT/<recipe>-rehearsal`, which a new rehearsal empties first.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from ladle.artifacts.build import Workspace
from ladle.artifacts.files import list_files, make_folder
from ladle.artifacts.inputs import InputFinder
from ladle.artifacts.record import read_record
from ladle.artifacts.step import Step
from ladle.checkup import Checkup, Estimate, Measured, Shrinking
from ladle.config import Config
from ladle.errors import CheckFailed
from ladle.log import get_logger
from ladle.pipeline import Pipeline
from ladle.preflight.diagnose import CheckedInputs
from ladle.preflight.machine import available_memory, look_at_machine
from ladle.recipe import Recipe, load_recipe
from ladle.training.before import SMALL_CACHES

logger = get_logger(__name__)

KILL_TRIES = 3
POLL_SECONDS = 0.2
STOP_POLL_SECONDS = 0.005
GPU_POLL_SECONDS = 2.0
"""nvidia-smi takes about a tenth of a second."""


@dataclass(frozen=True)
class Line:
    """A step of the recipe, its rehearsal, and what the true step takes.

    Attributes:
        step: its name.
        seconds: what its rehearsal took, over all runs.
        peak_bytes: the rehearsal's peak of main memory.
        gpu_peak_bytes: its peak of GPU memory, over all GPUs.
        full_seconds: about what the true step takes on these devices; None if nothing shows it.
        full_bytes: about what the true step writes.
        cost: full time x GPUs x price; without a GPU, of a training by its FLOPs, and None for other stages.
        note: what was shown besides, such as a resume after a kill.
    """

    step: str
    seconds: float
    peak_bytes: int
    gpu_peak_bytes: int
    full_seconds: float | None
    full_bytes: int
    cost: float | None
    note: str


@dataclass(frozen=True)
class Rehearsal:
    """A finished rehearsal: its table, what was not shown at its true size, its time, and the GPUs it ran on."""

    lines: tuple[Line, ...]
    changes: tuple[str, ...]
    seconds: float
    gpus: int


@dataclass(frozen=True)
class Watched:
    """What one run of a command took."""

    code: int
    seconds: float
    peak_bytes: int
    """The most that its processes held at once, resident; pages they share are counted once a process."""
    gpu_peak_bytes: int
    """The most that its processes held of GPUs at once, as nvidia-smi says; 0 without."""


@dataclass(frozen=True)
class Rehearsed:
    """One small step that was run."""

    step: Step
    runs: tuple[Watched, ...]
    size_bytes: int
    record: dict[str, Any]


def rehearse(path: Path, overrides: list[str], root: Path, price_per_gpu_hour: float) -> Rehearsal:
    """Run every stage of a recipe in tiny amounts.

    Raises:
        UserError: the recipe or its inputs are wrong.
        CheckFailed: a step did not end well; its log is named.
    """
    recipe = load_recipe(path, overrides)
    started = time.monotonic()
    folder = root / f"{recipe.name}-rehearsal"
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder / "logs")
    machine = look_at_machine()
    true_steps = [Checkup(step, machine) for step in Pipeline(recipe, CheckedInputs(root, [])).in_build_order()]
    small, changes = make_small(recipe, true_steps, len(machine.gpus), folder / "samples")
    for change in changes:
        logger.info("rehearsal: %s", change)
    small_path = folder / "recipe.yaml"
    tree = small.model_dump(mode="json", exclude={"source"})
    small_path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    done = []
    workspace = Workspace(root / small.name)
    for step in Pipeline(load_recipe(small_path), InputFinder(root)).in_build_order():
        logger.info("rehearsing %s", step.name)
        done.append(_rehearse_step(step, small_path, root, workspace, folder / "logs"))
    lines = tuple(_line(true, _rehearsal_of(true, done), price_per_gpu_hour) for true in true_steps)
    return Rehearsal(lines, tuple(changes), time.monotonic() - started, len(machine.gpus))


def make_small(recipe: Recipe, true_steps: list[Checkup], gpus: int, samples: Path) -> tuple[Recipe, list[str]]:
    """Return the recipe with every section made small by its stage, and what that leaves out."""
    changes: list[str] = []
    true_of = {one.key: one for one in true_steps if one.step.stage.section is not None}
    true_of |= {f"{one.key}:{one.step.stage.name}": one for one in true_steps}
    stages = {one.step.stage.name: one.step.stage for one in true_steps}
    free_bytes = available_memory()

    def shrink(value: Any, key: str) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(shrink(item, f"{key}.{index}") for index, item in enumerate(value))
        if isinstance(value, dict):
            return {name: shrink(item, f"{key}.{name}") for name, item in value.items()}
        if not isinstance(value, Config):
            return value
        for stage in stages.values():
            if stage.shrink is not None and stage.section is not None and isinstance(value, stage.section):
                true = true_of.get(f"{key}:{stage.name}", true_of.get(key))
                value = stage.shrink(value, Shrinking(key, true, gpus, free_bytes, samples, changes))
        fields = type(value).model_fields
        inner = {name: shrink(getattr(value, name), f"{key}.{name}".removeprefix(".")) for name in fields}
        return value.model_copy(update=inner)

    return shrink(recipe, "").model_copy(update={"name": f"{recipe.name}-rehearsal"}), changes


def _rehearse_step(step: Step, recipe: Path, root: Path, workspace: Workspace, logs: Path) -> Rehearsed:
    command = [sys.executable, "-m", "ladle", "run", str(recipe), "--root", str(root), "--only", step.name]
    log = logs / f"{step.name.replace('/', '-')}.log"
    killed = _kill_once_it_can_resume(step, command, workspace, log)
    last = watch(command, log)
    if last.code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise CheckFailed(f"{step.name} ended with exit code {last.code}; its messages are in {log}\n{tail}")
    folder = workspace.path_of(step)
    size = sum(file.stat().st_size for file in list_files(folder) if file.is_file())
    done = Rehearsed(step, (*killed, last), size, read_record(folder))
    if killed and not done.record["counters"].get("resumed_from_step"):
        raise CheckFailed(f"{step.name} was killed after its first checkpoint and did not resume from it; see {log}")
    return done


def _kill_once_it_can_resume(step: Step, command: list[str], workspace: Workspace, log: Path) -> tuple[Watched, ...]:
    """Run a step until it has left something to resume from, and kill it; empty if it leaves nothing, or too late."""
    trainer = getattr(step.config, "trainer", None)
    if step.stage.resumes_from is None or (trainer is not None and trainer.get("save_strategy") == "no"):
        return ()
    partial = workspace.partial_of(step)
    for _ in range(KILL_TRIES):
        killed = watch(command, log.with_suffix(".killed.log"), stop=lambda: _num_saved(step, partial) > 0)
        if killed.code not in (0, -signal.SIGKILL):
            return ()  # it fails by itself, as the next run will say
        if killed.code == -signal.SIGKILL and _num_saved(step, partial) == 1:
            return (killed,)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(workspace.path_of(step), ignore_errors=True)
    logger.warning("%s is over too soon to be killed after its first checkpoint: resuming is not rehearsed", step.name)
    return ()


def _num_saved(step: Step, partial: Path) -> int:
    return sum(path.is_dir() for path in partial.glob(step.stage.resumes_from or ""))


def _rehearsal_of(true: Checkup, done: list[Rehearsed]) -> Rehearsed | None:
    """Return the small step that stands for a true one: of its name, else of its stage, for a later round."""
    same_stage = [one for one in done if one.step.stage is true.step.stage]
    named = [one for one in same_stage if one.step.name == true.step.name]
    return next(iter([*named, *(one for one in same_stage if one.step.section == true.key)]), None)


def _line(true: Checkup, done: Rehearsed | None, price: float) -> Line:
    stage, machine_gpus = true.step.stage, len(true.machine.gpus)
    written = stage.bytes_written(true) if stage.bytes_written is not None else 0
    if done is None:
        return Line(true.step.name, 0.0, 0, 0, None, written, None, "not rehearsed")
    seconds = sum(run.seconds for run in done.runs)
    full = Estimate()
    if stage.extrapolate is not None:
        full = stage.extrapolate(true, Measured(done.step.config, seconds, done.record))
    busy = min(machine_gpus, stage.num_gpus(true.config))
    cost = full.seconds / 3600 * busy * price if full.seconds is not None and busy else None
    if not machine_gpus and full.gpu_hours is not None:
        cost = full.gpu_hours * price
    return Line(
        step=true.step.name,
        seconds=seconds,
        peak_bytes=max(run.peak_bytes for run in done.runs),
        gpu_peak_bytes=max(run.gpu_peak_bytes for run in done.runs),
        full_seconds=full.seconds,
        full_bytes=written or done.size_bytes,
        cost=cost,
        note="killed after a checkpoint, resumed" if len(done.runs) > 1 else "",
    )


# Watching a process.


def watch(command: list[str], log: Path, stop: Callable[[], bool] = lambda: False) -> Watched:
    """Run a command to its end, or until `stop` says so: then all its processes are killed with SIGKILL.

    Args:
        command: what to run.
        log: where its output goes.
        stop: called every few milliseconds.
    """
    started = looked = time.monotonic()
    peak, gpu_peak = 0, 0
    look_at_gpus = started if shutil.which("nvidia-smi") else math.inf
    with log.open("w", encoding="utf-8") as stream:
        environment = SMALL_CACHES | os.environ
        process = psutil.Popen(command, stderr=stream, stdout=stream, env=environment, start_new_session=True)
        while process.poll() is None:
            if stop():
                for one in [*reversed(process.children(recursive=True)), process]:
                    one.kill()
                process.wait()
                break
            if time.monotonic() - looked >= POLL_SECONDS:
                looked = time.monotonic()
                peak = max(peak, sum(map(_resident_bytes, [process, *process.children(recursive=True)])))
                if looked >= look_at_gpus:
                    gpu_peak = max(gpu_peak, _gpu_bytes([process, *process.children(recursive=True)]))
                    look_at_gpus = looked + GPU_POLL_SECONDS
            time.sleep(STOP_POLL_SECONDS)
    return Watched(process.returncode, time.monotonic() - started, peak, gpu_peak)


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:  # ended meanwhile
        return 0


def _gpu_bytes(processes: list[psutil.Process]) -> int:
    """Return what these processes hold of all GPUs, as nvidia-smi says; in a container it may know them by others."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1]
    known = {str(process.pid) for process in processes}
    mebibytes = [used for pid, used in rows if pid.strip() in known and used.strip().isdecimal()]
    return sum(map(int, mebibytes)) * 2**20
