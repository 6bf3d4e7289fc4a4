"""`ladle launch`: a recipe on all processes of this machine, or as jobs of a Slurm cluster."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ladle import display
from ladle.artifacts.launcher import torchrun_command
from ladle.artifacts.plan import PlannedStep, State, make_plan
from ladle.commands.options import DEFAULT_ROOT, AsJson, Overrides, RecipePath, Root
from ladle.commands.running import build_all, load_steps
from ladle.errors import UserError


def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit a Slurm job for each step, in their order.")] = False,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="What the cluster's jobs ask for, such as recipes/slurm/gpu.yaml.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, help="Processes of each training on this machine; unset is one per GPU."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scripts or commands and do nothing.")] = False,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Run a recipe on every GPU of this machine, or step by step on a Slurm cluster.

    Examples:

      ladle launch recipes/tiny.yaml --processes 2 --dry-run

      ladle launch recipes/tiny.yaml --slurm --profile recipes/slurm/cpu.yaml --dry-run
    """
    if profile is not None and not slurm:
        raise UserError("--profile is for Slurm jobs", "add --slurm, or leave --profile out")
    if slurm:
        _launch_on_slurm(recipe, list(overrides or []), profile, dry_run, root, as_json)
        return
    from ladle.doctor.machine import gpus_of_machine

    count = processes or len(gpus_of_machine()) or None
    steps, workspace = load_steps(recipe, [*(overrides or []), *_on_processes(recipe, overrides, count)], root)
    if dry_run:
        _print_commands(make_plan(steps, workspace))
        return
    build_all(steps, workspace)
    display.print_results(steps, workspace)


def _on_processes(recipe: Path, overrides: list[str] | None, count: int | None) -> list[str]:
    """Return the overrides that give each training of the recipe `count` processes; none where count is None."""
    from ladle.recipe import load_recipe

    if count is None:
        return []
    loaded = load_recipe(recipe, overrides)
    base = loaded.base.pretrain if loaded.base else None
    sections = {"base.pretrain": base, "pretrain": loaded.pretrain, "kto": loaded.kto}
    names = [name for key, section in sections.items() for name in _names_of(key, section)]
    return [f"{name}.processes={count}" for name in names]


def _names_of(key: str, section: Any) -> list[str]:
    if section is None:
        return []
    return [f"{key}.{index}" for index in range(len(section))] if isinstance(section, (list, tuple)) else [key]


def _print_commands(plan: list[PlannedStep]) -> None:
    for planned in plan:
        if planned.state is State.CACHED:
            sys.stdout.write(f"{planned.step.name}: cached\n")
            continue
        processes = getattr(planned.step.config, "processes", 1)
        how = "in this process" if processes == 1 else shlex.join(torchrun_command(processes, {}))
        sys.stdout.write(f"{planned.step.name}: {how}\n")


def _launch_on_slurm(
    recipe: Path, overrides: list[str], profile_path: Path | None, dry_run: bool, root: Path, as_json: bool
) -> None:
    from ladle.launch.jobs import make_jobs
    from ladle.launch.profile import load_profile
    from ladle.launch.script import Call
    from ladle.launch.submit import make_scripts, submit

    profile = load_profile(profile_path)
    steps, workspace = load_steps(recipe, overrides, root)
    jobs = make_jobs(make_plan(steps, workspace), profile)
    call = Call(str(recipe), tuple(overrides), str(root), str(Path.cwd()), sys.executable)
    scripts = make_scripts(jobs, profile, call, workspace.folder / "slurm")
    if dry_run:
        if as_json:
            rows = [{"job": s.job.name, "after": list(s.job.after), "script": s.text} for s in scripts]
            sys.stdout.write(json.dumps(rows, indent=2) + "\n")
            return
        for script in scripts:
            after = f" after {', '.join(script.job.after)}" if script.job.after else ""
            sys.stdout.write(f"# ---- {script.path}{after}\n{script.text}\n")
        return
    display.print_submitted(submit(scripts), as_json)
