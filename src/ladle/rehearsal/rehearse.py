"""The rehearsal: the recipe in miniature, each step in a process of its own; a training is killed and goes on.

Everything stands in `ROOT/<recipe>-rehearsal`, which a new rehearsal empties first.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ladle.artifacts.build import Workspace
from ladle.artifacts.files import list_files, make_folder
from ladle.artifacts.inputs import InputFinder, find_local
from ladle.artifacts.record import read_record
from ladle.artifacts.step import Step
from ladle.config_file import ConfigFile
from ladle.data.config import SourceConfig
from ladle.doctor.machine import available_memory
from ladle.doctor.memory import shape_of
from ladle.doctor.model import config_of_base
from ladle.doctor.references import references_of
from ladle.doctor.trainings import trainings_of
from ladle.errors import CheckFailed
from ladle.log import get_logger
from ladle.pipeline import Pipeline
from ladle.recipe import Recipe, load_recipe
from ladle.rehearsal.measure import Watched, watch
from ladle.rehearsal.sample import sample_source
from ladle.rehearsal.shrink import STEPS, Shrunk, Tree
from ladle.training.config import TrainingConfig
from ladle.training.memory import estimate_training

logger = get_logger(__name__)

SHARE_OF_MEMORY = 0.6
"""Of the free memory, what a training may take in a rehearsal on a CPU: saving and other programs need some."""
KILL_TRIES = 3


@dataclass(frozen=True)
class Rehearsed:
    """One step of the rehearsal.

    Attributes:
        step: what was built.
        runs: its runs; a training has the killed one and the resumed one.
        size_bytes: what it left on disk.
        resumed: a killed run went on from its checkpoint.
        record: what it recorded of itself.
    """

    step: Step
    runs: tuple[Watched, ...]
    size_bytes: int
    resumed: bool
    record: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Time of all runs."""
        return sum(run.seconds for run in self.runs)

    @property
    def peak_bytes(self) -> int:
        """The largest peak of any run."""
        return max(run.peak_bytes for run in self.runs)

    @property
    def gpu_peak_bytes(self) -> int:
        """The largest peak of any run on GPUs, all together."""
        return max(run.gpu_peak_bytes for run in self.runs)


@dataclass(frozen=True)
class Rehearsal:
    """A finished rehearsal: the recipe it stands for, what was made smaller, and every step."""

    recipe: Recipe
    changes: tuple[str, ...]
    steps: tuple[Rehearsed, ...]
    seconds: float


def rehearse(path: Path, overrides: list[str], root: Path, gpus: int) -> Rehearsal:
    """Run every stage of a recipe in tiny amounts.

    Args:
        path: the recipe.
        overrides: its overrides.
        root: where runs are kept.
        gpus: GPUs of this machine.

    Raises:
        UserError: the recipe or its inputs are wrong.
        CheckFailed: a step did not end well; its log is named.
    """
    recipe = load_recipe(path, overrides)
    started = time.monotonic()
    folder = root / f"{recipe.name}-rehearsal"
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder / "logs")
    small_path, changes = _write_small_recipe(path, overrides, folder, gpus)
    for change in changes:
        logger.info("rehearsal: %s", change)
    small = load_recipe(small_path)
    steps = Pipeline(small, InputFinder(root)).in_build_order()
    workspace = Workspace(root / small.name)
    done = []
    for step in steps:
        logger.info("rehearsing %s", step.name)
        done.append(_rehearse_step(step, small_path, root, workspace, folder / "logs"))
        logger.info("%s: %.0f s, %.2f GB at most", step.name, done[-1].seconds, done[-1].peak_bytes / 1e9)
    return Rehearsal(recipe, tuple(changes), tuple(done), time.monotonic() - started)


def _write_small_recipe(path: Path, overrides: list[str], folder: Path, gpus: int) -> tuple[Path, list[str]]:
    file = ConfigFile.read(path)
    file.override(overrides)
    shrunk = Shrunk(file.tree, gpus, _sampler(file, folder / "samples"))
    small = folder / "recipe.yaml"
    _write(shrunk, small)
    if not gpus and _fit_memory(shrunk, load_recipe(small)):
        _write(shrunk, small)
    return small, shrunk.changes


def _write(shrunk: Shrunk, path: Path) -> None:
    path.write_text(yaml.safe_dump(shrunk.tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _fit_memory(shrunk: Shrunk, small: Recipe) -> bool:
    """Change the optimizer of trainings that would not fit into this machine's memory; return whether any was."""
    base = next((one for one in references_of(small) if one.key == "base.model"), None)
    config = config_of_base(small, base)
    if config is None:
        return False
    changed = False
    for training in trainings_of(small):
        needed, there = estimate_training(shape_of(training, config)).total, available_memory()
        if needed > SHARE_OF_MEMORY * there:
            why = f"it takes {needed / 1e9:.1f} GB of the {there / 1e9:.1f} free"
            shrunk.save_memory(_section(shrunk.tree, training.key), training.key, why)
            changed = True
    return changed


def _section(tree: Tree, key: str) -> Tree:
    place: Any = tree
    for part in key.split("."):
        place = place[int(part)] if isinstance(place, list) else place[part]
    return place


def _sampler(file: ConfigFile, folder: Path) -> Callable[[str, Tree, int], str]:
    """Return the function that copies a few rows of a source aside; a dataset that the recipe makes stays itself."""

    def sample(key: str, values: Tree, tokens: int) -> str:
        source = SourceConfig.model_validate(file.substitute(values))
        if source.dataset in (file.tree.get("datasets") or {}) and not find_local(source.dataset):
            return source.dataset
        return str(sample_source(source, tokens, folder / f"{key}.jsonl").absolute())

    return sample


def _rehearse_step(step: Step, recipe: Path, root: Path, workspace: Workspace, logs: Path) -> Rehearsed:
    command = [sys.executable, "-m", "ladle", "run", str(recipe), "--root", str(root), "--only", step.name]
    log = logs / f"{step.name.replace('/', '-')}.log"
    runs = []
    if _saves(step) and (killed := _kill_after_a_checkpoint(step, command, workspace, log)):
        runs.append(killed)
    runs.append(watch(command, log))
    if runs[-1].code != 0:
        raise CheckFailed(f"{step.name} ended with exit code {runs[-1].code}; its messages are in {log}\n{_tail(log)}")
    resumed = any("going on from checkpoint-" in line for _, line in runs[-1].lines)
    if len(runs) == 2 and not resumed:
        raise CheckFailed(f"{step.name} was killed after its first checkpoint and did not go on from it; see {log}")
    size = sum(file.stat().st_size for file in list_files(workspace.path_of(step)) if file.is_file())
    return Rehearsed(step, tuple(runs), size, resumed, read_record(workspace.path_of(step)))


def _saves(step: Step) -> bool:
    """Tell whether a step is a training that leaves a checkpoint after each step."""
    return isinstance(step.config, TrainingConfig) and step.config.trainer.values().get("save_strategy") == "steps"


def _kill_after_a_checkpoint(step: Step, command: list[str], workspace: Workspace, log: Path) -> Watched | None:
    """Run a training until its first checkpoint stands, and kill it; None if it is always over sooner than that."""
    partial = workspace.partial_of(step)
    checkpoints = partial / "checkpoints"
    for _ in range(KILL_TRIES):
        killed = watch(command, log.with_suffix(".killed.log"), stop=(checkpoints / "checkpoint-1").is_dir)
        if killed.code not in (0, -signal.SIGKILL):
            return None  # it fails by itself, as the next run will say
        if killed.code == -signal.SIGKILL and not (checkpoints / f"checkpoint-{STEPS}").is_dir():
            return killed
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(workspace.path_of(step), ignore_errors=True)
    logger.warning("%s is over too soon to be killed after its first checkpoint: resuming is not rehearsed", step.name)
    return None


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
