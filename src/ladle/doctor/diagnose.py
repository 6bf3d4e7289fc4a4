"""Everything that can be known before a run, in one go: a file of this package for each family of checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladle.artifacts.build import Workspace
from ladle.artifacts.inputs import InputFinder
from ladle.artifacts.plan import State, make_plan
from ladle.doctor.arguments import check_arguments
from ladle.doctor.data import check_data
from ladle.doctor.devices import check_devices
from ladle.doctor.disk import base_parameters, check_disk
from ladle.doctor.finding import Finding, Level, error, guarded, ok
from ladle.doctor.hub import check_references
from ladle.doctor.machine import Machine
from ladle.doctor.memory import check_memory
from ladle.doctor.model import check_models, config_of_base
from ladle.doctor.references import references_of
from ladle.doctor.trainings import trainings_of
from ladle.errors import LadleError, UserError
from ladle.pipeline import Pipeline
from ladle.recipe import Recipe, load_recipe


def diagnose(path: Path, overrides: list[str], root: Path, machine: Machine) -> list[Finding]:
    """Return what was found, in the order of the checks; a recipe that cannot be read is the one finding."""
    try:
        recipe = load_recipe(path, overrides)
    except UserError as fault:
        return [error(_family_of(fault), str(path), fault.problem, fault.fix)]
    found = [
        ok("arguments", str(path), "every key and value is one that the stages take"),
        *dict.fromkeys(_check(recipe, root, machine)),  # a fault that two checks meet is told once
    ]
    if not any(finding.level is Level.ERROR for finding in found):
        found += guarded("arguments", "plan", lambda: _check_graph(recipe, root))
    return found


def _check(recipe: Recipe, root: Path, machine: Machine) -> Iterator[Finding]:
    trainings = trainings_of(recipe)
    references = references_of(recipe)
    there = list(check_references(references))
    yield from there
    yield from check_devices(recipe, trainings, machine)
    yield from check_arguments(recipe, trainings)
    yield from check_data(recipe)
    config, faults = _base_config(recipe, references, there)
    yield from faults
    yield from check_models(recipe, references, config)
    broken = any(finding.level is Level.ERROR and finding.family == "model" for finding in faults)
    yield from check_disk(recipe, root, None if broken else base_parameters(config))
    if not broken:
        yield from check_memory(trainings, config, machine)


def _base_config(recipe: Recipe, references: list, there: list[Finding]) -> tuple[dict[str, Any] | None, list[Finding]]:
    base = next((one for one in references if one.key == "base.model"), None)
    absent = any(f.level is Level.ERROR and f.subject in ("base.model", "base.init.tokenizer") for f in there)
    if absent:
        return None, []
    try:
        config = config_of_base(recipe, base)
        base_parameters(config)
    except LadleError as fault:
        fix = fault.fix if isinstance(fault, UserError) else "mend the model's folder"
        key = "base.model" if base is not None else "base.init"
        return None, [error("model", key, fault.problem if isinstance(fault, UserError) else str(fault), fix)]
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, AssertionError) as fault:
        # whatever a model's own constructor raises for sizes that do not fit each other
        key = "base.init.architecture" if recipe.base and recipe.base.init else "base.model"
        message = (
            f"transformers cannot build this architecture: {(str(fault).splitlines() or [type(fault).__name__])[0]}"
        )
        return None, [error("model", key, message, "check the sizes against a config.json of the same model_type")]
    return config, []


def _check_graph(recipe: Recipe, root: Path) -> Iterator[Finding]:
    """Make the plan that a run would make; whatever it refuses is an error."""
    steps = Pipeline(recipe, InputFinder(root)).in_build_order()
    plan = make_plan(steps, Workspace(root / recipe.name))
    finished = sum(planned.state is State.CACHED for planned in plan)
    yield ok("arguments", "plan", f"{len(plan)} steps, {finished} of them finished")


def _family_of(fault: UserError) -> str:
    text = fault.problem
    if "trainer" in text or "unknown key" in text:
        return "arguments"
    return "data" if any(word in text for word in ("ratio", "source", "budget", "template", "dataset")) else "arguments"
