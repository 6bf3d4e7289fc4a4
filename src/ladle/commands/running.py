"""What commands share that build the steps of a recipe."""

from __future__ import annotations

from pathlib import Path

from ladle import display
from ladle.artifacts.build import Workspace, build
from ladle.artifacts.plan import State, make_plan
from ladle.artifacts.step import Step
from ladle.hub import Resolve, resolve_commit


def load_steps(
    recipe: Path,
    overrides: list[str] | None,
    root: Path,
    only: str | None = None,
    section: str = "",
    out: Path | None = None,
    resolve: Resolve = resolve_commit,
) -> tuple[list[Step], Workspace]:
    """Read a recipe and return its steps, parents first, and where they are built.

    Args:
        recipe: the file.
        overrides: `key=value` assignments.
        root: where runs are kept.
        only: the one step that is wanted, with all it needs.
        section: the section that the overrides are relative to.
        out: the folder that `only` is built in, where the user names one.
        resolve: tells the commit of a name of the Hub.
    """
    from ladle.artifacts.inputs import InputFinder
    from ladle.pipeline import Pipeline
    from ladle.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or (), section)
    steps = Pipeline(loaded, InputFinder(root, resolve)).in_build_order(only)
    placed = ((only, out),) if only is not None and out is not None else ()
    return steps, Workspace(root / loaded.name, placed)


def build_all(steps: list[Step], workspace: Workspace) -> None:
    """Build each step that is not finished, saying so."""
    for planned in make_plan(steps, workspace):
        if planned.state is State.CACHED:
            display.say_cached(planned)
        else:
            with display.building(planned):
                build(planned.step, workspace)
