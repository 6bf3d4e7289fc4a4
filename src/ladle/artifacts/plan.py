"""What `run` would do, and why: each step cached, resume, new or changed, with the keys that differ from last time."""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ladle.artifacts.build import Workspace
from ladle.artifacts.record import RECORD_NAME, UNFINISHED_NAME, is_complete, read_record
from ladle.artifacts.step import Step, StepInput, StepOutput

ABSENT = "(absent)"
"""Stands for the value of a key that only the other side has."""


class State(StrEnum):
    """What a run does with a step."""

    CACHED = "cached"
    RESUME = "resume"
    NEW = "new"
    CHANGED = "changed"


@dataclass(frozen=True)
class PlannedStep:
    """One line of the plan."""

    step: Step
    state: State
    reasons: tuple[str, ...]
    path: Path


def make_plan(steps: list[Step], workspace: Workspace) -> list[PlannedStep]:
    """Compare each step with what is on disk; reads records and file sizes, never file contents."""
    return [_plan_step(step, workspace) for step in steps]


def _plan_step(step: Step, workspace: Workspace) -> PlannedStep:
    path, partial = workspace.path_of(step), workspace.partial_of(step)
    if is_complete(path, step.fingerprint):
        return PlannedStep(step, State.CACHED, (), path)
    if partial.is_dir():
        return PlannedStep(step, State.RESUME, ("an unfinished build is on disk",), path)
    folder, previous = _latest_build(step, path)
    if previous is None:
        return PlannedStep(step, State.NEW, (), path)
    left = (f"{folder.name} is of other settings, and stays unfinished",) if folder.suffix == ".partial" else ()
    return PlannedStep(step, State.CHANGED, _differences(step, previous) + left, path)


def _latest_build(step: Step, path: Path) -> tuple[Path, dict[str, Any] | None]:
    """Return the folder and the identity of the newest build of the step's name, finished or not.

    Beside a folder that the user named, only unfinished builds are the step's.
    """
    is_named_by_user = path.name != step.folder_name
    siblings = f"{glob.escape(path.name)}-*.partial" if is_named_by_user else f"{step.name.rsplit('/', 1)[-1]}-*"
    builds: list[tuple[float, Path, dict[str, Any]]] = []
    for folder in [path, *path.parent.glob(siblings)]:
        file = folder / (UNFINISHED_NAME if folder.suffix == ".partial" else RECORD_NAME)
        if file.is_file():
            build = read_record(folder) if file.name == RECORD_NAME else json.loads(file.read_text(encoding="utf-8"))
            if build["name"] == step.name:
                builds.append((file.stat().st_mtime, folder, build["identity"]))
    _, folder, identity = max(builds, default=(0.0, path, None), key=lambda one: one[0])
    return folder, identity


def _differences(step: Step, old: dict[str, Any]) -> tuple[str, ...]:
    new = step.identity
    if old["stage"] != new["stage"]:
        return (f"the stage: {old['stage']} → {new['stage']}",)
    reasons = []
    if old["version"] != new["version"]:
        reasons.append(f"the stage's version: {old['version']} → {new['version']}")
    reasons += [
        f"{key}: {_show_change(before, after)}"
        for key, before, after in diff_values(old["config"], new["config"], step.section)
    ]
    for role in sorted(old["inputs"].keys() | new["inputs"].keys()):
        if old["inputs"].get(role) != new["inputs"].get(role):
            reasons.append(_input_reason(role, step.inputs.get(role, ()), old["inputs"].get(role, [])))
    return tuple(dict.fromkeys(reasons)) or ("files of the earlier artifact are missing",)


def _input_reason(role: str, items: tuple[StepInput, ...], old_identities: list[Any]) -> str:
    changed = [item for item in items if item.identity() not in old_identities]
    names = sorted({item.step.name for item in changed if isinstance(item, StepOutput)})
    return f"downstream of {', '.join(names)}" if names else f"input {role} has other content"


def diff_values(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, old, new) for every leaf that differs between two JSON values, or that only one has."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in old | new]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(index, before, after) for index, (before, after) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [(path, old, new)]
    return [row for key, a, b in pairs for row in diff_values(a, b, f"{path}.{key}" if path else str(key))]


_PLACES = ("artifact", "fingerprint", "paths")


def compare_records(first: Path, second: Path) -> tuple[bool, list[tuple[str, Any, Any]]]:
    """Return whether two artifacts have equal results, and what differs in what they were made from and by.

    Each difference is a dotted place in the record (`config`, `inputs`, `environment`, `files`) and both values; places
    on disk, and files that may differ between equal results, are left out.
    """
    records = [read_record(folder) for folder in (first, second)]
    sides: list[dict[str, Any]] = []
    for record in records:
        inputs = {
            role: [{name: value for name, value in one.items() if name not in _PLACES} for one in items]
            for role, items in record["inputs"].items()
        }
        files = {
            name: entry["blake3"]
            for name, entry in record["files"].items()
            if not any(fnmatch(name, pattern) for pattern in record["volatile"])
        }
        made_by = {name: record["identity"][name] for name in ("stage", "version", "config")}
        sides.append(made_by | {"inputs": inputs, "environment": record["environment"], "files": files})
    return records[0]["digest"] == records[1]["digest"], diff_values(sides[0], sides[1])


def _show_change(before: Any, after: Any) -> str:
    shown = ["unset" if value in (None, ABSENT) else str(value) for value in (before, after)]
    return "added or removed" if shown == ["unset", "unset"] else " → ".join(shown)
