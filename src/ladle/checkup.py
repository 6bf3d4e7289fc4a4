"""What the doctor and the rehearsal ask a stage, and what it answers with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from ladle.artifacts.inputs import HubRepository, LocalFiles
from ladle.artifacts.step import Step, StepInput, StepOutput
from ladle.errors import LadleError, UserError
from ladle.hub import snapshot

MODEL_ROLES = ("model", "candidate", "members", "tokenizer")
"""Roles of inputs that are, or come with, a model."""


class Level(StrEnum):
    """How a finding stands."""

    OK = "ok"
    WARNING = "warning"
    """The run will end, but not as one would wish."""
    ERROR = "error"
    """The run will stop, sooner or later."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        level: how it stands.
        family: data, model, arguments, disk, memory, devices or hub.
        subject: what was looked at: a key of the recipe, a step, a device.
        message: what was seen.
        fix: the command, key or edit that fixes it; empty if all is well.
    """

    level: Level
    family: str
    subject: str
    message: str
    fix: str = ""


def ok(family: str, subject: str, message: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, family, subject, message)


def warning(family: str, subject: str, message: str, fix: str) -> Finding:
    """Return a finding of what lets the run end, but not as one would wish."""
    return Finding(Level.WARNING, family, subject, message, fix)


def error(family: str, subject: str, message: str, fix: str) -> Finding:
    """Return a finding of what will stop the run."""
    return Finding(Level.ERROR, family, subject, message, fix)


def guarded(family: str, subject: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; an error that the stage itself would end with is a finding too."""
    try:
        yield from list(check())
    except UserError as fault:
        yield error(family, subject, fault.problem, fault.fix)
    except LadleError as fault:
        yield error(family, subject, str(fault), "fix it, and run `ladle doctor` again")


@dataclass(frozen=True)
class Gpu:
    """One GPU, as nvidia-smi describes it."""

    index: int
    name: str
    memory_bytes: int
    capability: tuple[int, int]
    driver: str


@dataclass(frozen=True)
class Machine:
    """What a run has at its disposal.

    Attributes:
        gpus: those this process may use.
        cores: cores this process may use.
        memory_bytes: main memory that is free for a new process, of what this process may use.
        torch: version of the installed torch; None if there is none.
        cuda: CUDA version that torch was built for; None is a CPU build.
        packages: the optional packages that are installed, by the names they are imported under.
        multiplies_bfloat16: the CPU has instructions for it; without them it is slower than float32.
    """

    gpus: tuple[Gpu, ...] = ()
    cores: int = 1
    memory_bytes: int = 0
    torch: str | None = None
    cuda: str | None = None
    packages: frozenset[str] = field(default_factory=frozenset)
    multiplies_bfloat16: bool = True


@dataclass(frozen=True)
class Checkup:
    """A step before it is built, on a machine: what a stage's checks can ask about."""

    step: Step
    machine: Machine

    @property
    def config(self) -> Any:
        """The step's config."""
        return self.step.config

    @property
    def key(self) -> str:
        """The section of the recipe that configures the step."""
        return self.step.section

    def local(self, role: str) -> list[Path]:
        """Return the files and folders of a role that are on this machine already."""
        items = self.step.inputs.get(role, ())
        return [path for item in items if isinstance(item, LocalFiles) for path in item.paths]

    def parent(self, role: str) -> Step | None:
        """Return the step whose output the first input of a role is; None if it is none's."""
        first = next(iter(self.step.inputs.get(role, ())), None)
        return first.step if isinstance(first, StepOutput) else None

    @cached_property
    def model_config(self) -> dict[str, Any] | None:
        """The fields of config.json of the model that the step starts from; None if they are not known yet.

        Raises:
            UserError: its config.json is not JSON.
        """
        return model_config_of(self.step)

    @cached_property
    def tokenizer_folder(self) -> Path | None:
        """The folder on this machine with the tokenizer that the step uses; None if it is not here yet."""
        root = _root_of(self.step)
        found = [Path(path) for path in root.paths] if isinstance(root, LocalFiles) else []
        return _model_folder(found[0]) if found else None

    def needs(self, package: str, fix: str) -> Iterator[Finding]:
        """Yield an error unless an optional package is installed."""
        if package not in self.machine.packages:
            yield error("devices", package, f"the recipe needs {package}, which is not installed", fix)


def model_config_of(step: Step) -> dict[str, Any] | None:
    """Return the fields of config.json of the model that a step reads; None if they are not known before a run."""
    if step.stage.model_config is not None and (made := step.stage.model_config(step)) is not None:
        return made
    return model_config_of_input(_model_input(step))


def model_config_of_input(item: StepInput | None) -> dict[str, Any] | None:
    """Return the fields of config.json of a model that a step reads; None if they are not known before a run."""
    if isinstance(item, StepOutput):
        return model_config_of(item.step)
    if isinstance(item, HubRepository):
        return read_config(snapshot(item.kind, item.repo_id, item.commit, "config.json").parent)
    folder = _model_folder(item.paths[0]) if item is not None and item.paths else None
    return read_config(folder) if folder is not None and (folder / "config.json").is_file() else None


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's config.json.

    Raises:
        UserError: it is not JSON.
    """
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise UserError(f"{path} is not JSON ({fault})", "fetch the file again") from fault


def _model_input(step: Step) -> StepInput | None:
    return next((step.inputs[role][0] for role in MODEL_ROLES if step.inputs.get(role)), None)


def _root_of(step: Step) -> StepInput | None:
    """Return the input from outside the run that a step's model goes back to."""
    item = _model_input(step)
    return _root_of(item.step) if isinstance(item, StepOutput) else item


def _model_folder(path: Path) -> Path:
    return path / "model" if (path / "model").is_dir() else path


@dataclass
class Shrinking:
    """What a stage knows when it makes its section small for a rehearsal.

    Attributes:
        key: the section.
        true: the step of the true run that the section configures; None if there is none.
        gpus: GPUs of this machine.
        free_bytes: main memory that is free.
        samples: a folder for small copies of data.
        changes: what was changed that the rehearsal then does not show.
    """

    key: str
    true: Checkup | None
    gpus: int
    free_bytes: int
    samples: Path
    changes: list[str]

    def say(self, change: str) -> None:
        """Note a change."""
        self.changes.append(f"{self.key}: {change}")


@dataclass(frozen=True)
class Measured:
    """What a rehearsed step took.

    Attributes:
        config: its small config.
        seconds: of all its runs.
        record: what it recorded of itself.
    """

    config: Any
    seconds: float
    record: dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """What the true step takes: seconds on the devices of the rehearsal, and GPU-hours by arithmetic; None: unknown."""

    seconds: float | None = None
    gpu_hours: float | None = None


def same_seconds(check: Checkup, measured: Measured) -> Estimate:
    """Return the rehearsal's own time, where starting, or work that does not shrink, takes most of it."""
    return Estimate(measured.seconds)
