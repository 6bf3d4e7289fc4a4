"""Everything that can be known before a run: what the recipe names is there, and each stage checks its own part."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ladle.artifacts.build import Workspace
from ladle.artifacts.files import readable_size
from ladle.artifacts.inputs import (
    HubRepository,
    InputFinder,
    LocalFile,
    LocalFiles,
    list_inputs,
    names_hub,
    signature_of,
)
from ladle.artifacts.plan import State, make_plan
from ladle.checkup import Checkup, Finding, Level, Machine, error, guarded, ok, warning
from ladle.errors import UserError
from ladle.hub import HubUnreachable, endpoint, is_commit, resolve_commit, size_of
from ladle.models.before import check_model_folder
from ladle.pipeline import Pipeline
from ladle.recipe import load_recipe

DRIVER_OF_CUDA = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver that runs a CUDA major version (CUDA's release notes, minor-version compatibility)."""
TIGHT = 0.9
"""Above this share of the free disk it may not suffice."""
T = TypeVar("T")


class CheckedInputs(InputFinder):
    """Finds what names stand for without reading files, and notes what it finds instead of stopping at a fault."""

    def __init__(self, root: Path, found: list[Finding]) -> None:
        super().__init__(root, self._resolve)
        self.found = found
        self.unreached: HubUnreachable | None = None

    def _resolve(self, kind: str, repo_id: str, revision: str | None) -> str:
        return self._ask(f"{kind} {repo_id}", lambda: resolve_commit(kind, repo_id, revision))

    def _ask(self, what: str, ask: Callable[[], T]) -> T:
        """Ask the Hub, unless it could not be reached before: each try takes half a minute."""
        from huggingface_hub import is_offline_mode

        if self.unreached is not None and not is_offline_mode():
            raise HubUnreachable(f"cannot fetch {what} from {endpoint()} either", self.unreached.fix)
        try:
            return ask()
        except HubUnreachable as fault:
            self.unreached = fault
            raise

    def find(self, kind: str, reference: str, key: str, *more: Any, **named: Any) -> LocalFiles | HubRepository:
        """Return the input that a name stands for; one without files if it stands for nothing."""
        family = "data" if kind == "dataset" else "model"
        try:
            item = super().find(kind, reference, key, *more, **named)
            if isinstance(item, HubRepository):
                self._note_repository(item, key)
                return item
        except UserError as fault:
            self.found.append(error("hub" if names_hub(reference) else family, key, fault.problem, fault.fix))
            return LocalFiles(())
        self.found.append(ok(family, key, f"{reference} is here"))
        if kind == "model" and not named.get("patterns"):
            for path in item.paths:
                self.found += guarded("model", key, lambda path=path: check_model_folder(key, path))
        return item

    def _note_repository(self, item: HubRepository, key: str) -> None:
        what = f"{item.kind} {item.repo_id}"
        size = self._ask(what, lambda: size_of(item.kind, item.repo_id, item.commit, item.file))
        where = f"{item.repo_id}@{item.commit[:12]}"
        how = "in the cache" if size is None else f"{readable_size(size)} on {endpoint()}"
        if item.revision is not None and is_commit(item.revision):
            self.found.append(ok("hub", key, f"{where}, {how}"))
        else:
            message = f"{where} ({how}) is what {item.revision or 'the default branch'} stands for today"
            fix = f"pin it, so that a later run is the same: revision: {item.commit}"
            self.found.append(warning("hub", key, message, fix))

    def local(self, paths: tuple[Path, ...], ignore: tuple[str, ...] = (), unread: bool = False) -> LocalFiles:
        """Describe files and folders by place, size and time, without reading them."""
        try:
            files = tuple(LocalFile(str(file), name, signature_of(file)) for file, name in list_inputs(paths, ignore))
        except UserError as fault:
            self.found.append(error("data", str(paths[0]), fault.problem, fault.fix))
            files = ()
        return LocalFiles(paths, files)


def diagnose(path: Path, overrides: list[str], root: Path, machine: Machine) -> list[Finding]:
    """Return what was found, in the order of the steps; a recipe that cannot be read is the one finding."""
    try:
        recipe = load_recipe(path, overrides)
    except UserError as fault:
        return [error("arguments", str(path), fault.problem, fault.fix)]
    found = [ok("arguments", str(path), "every key and value is one that the stages take")]
    found += _check_torch(machine)

    def note(fault: UserError) -> None:
        found.append(error("arguments", "plan", fault.problem, fault.fix))

    pipeline = Pipeline(recipe, CheckedInputs(root, found), on_fault=note)
    checkups = [Checkup(step, machine) for step in pipeline.in_build_order()]
    for checkup in checkups:
        check = checkup.step.stage.check
        if check is not None:
            found += guarded("model", checkup.key, lambda check=check, checkup=checkup: check(checkup))
    plan = make_plan([checkup.step for checkup in checkups], Workspace(root / recipe.name))
    found += _check_disk(checkups, root)
    if not any(finding.level is Level.ERROR for finding in found):
        finished = sum(planned.state is State.CACHED for planned in plan)
        found.append(ok("arguments", "plan", f"{len(plan)} steps, {finished} of them finished"))
    return list(dict.fromkeys(found))  # a fault that several steps meet is listed once


def _check_torch(machine: Machine) -> Iterator[Finding]:
    if machine.torch is None:
        yield error("devices", "torch", "torch is not installed", "make setup, or pip install torch")
    elif not machine.gpus:
        yield ok("devices", "torch", f"torch {machine.torch}, no GPU: {machine.cores} CPU core(s)")
    elif machine.cuda is None:
        message = f"this machine has {len(machine.gpus)} GPU(s), and torch {machine.torch} is built without CUDA"
        fix = "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/…"
        yield error("devices", "torch", message, fix)
    else:
        driver, cuda = machine.gpus[0].driver, str(machine.cuda)
        needed = DRIVER_OF_CUDA.get(int(cuda.split(".")[0]), 0)
        if int(driver.split(".")[0]) < needed:
            message = f"driver {driver} is too old for torch's CUDA {cuda} (needs {needed} or later)"
            yield error("devices", "driver", message, "update the driver, or install a torch built for an older CUDA")
        gpus = f"{len(machine.gpus)} x {', '.join(sorted({gpu.name for gpu in machine.gpus}))}"
        yield ok("devices", "torch", f"torch {machine.torch}, CUDA {cuda}, driver {driver}: {gpus}")


def _check_disk(checkups: list[Checkup], root: Path) -> Iterator[Finding]:
    """Yield whether the run's folder may be written and holds what the steps leave."""
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield error("disk", "root", f"{place} cannot be written", "choose another folder with --root")
        return
    sizes = {one.step.name: one.step.stage.bytes_written(one) for one in checkups if one.step.stage.bytes_written}
    free, needed = shutil.disk_usage(place).free, sum(sizes.values())
    listed = ", ".join(f"{name} {readable_size(size)}" for name, size in sizes.items() if size and size >= needed / 100)
    written = f"the stages write about {readable_size(needed)} ({listed or 'little each'})"
    message = f"{written}; {place} has {readable_size(free)} free"
    fix = "free space, choose another disk with --root, or keep fewer checkpoints (save_total_limit, keep_models)"
    if needed > free:
        yield error("disk", "space", message, fix)
    elif needed > TIGHT * free:
        yield warning("disk", "space", message, fix)
    else:
        yield ok("disk", "space", message)
