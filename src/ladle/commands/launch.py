"""`ladle launch`: a recipe on all processes of this machine, or as jobs of a Slurm cluster."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ladle import display
from ladle.artifacts.files import make_folder
from ladle.artifacts.plan import PlannedStep, State, make_plan
from ladle.artifacts.worker import torchrun_command
from ladle.commands.options import DEFAULT_ROOT, AsJson, Overrides, RecipePath, Root
from ladle.commands.running import build_all, load_steps
from ladle.errors import UserError
from ladle.hub import HubUnreachable, resolve_commit
from ladle.log import get_logger

if TYPE_CHECKING:
    from ladle.launch.submit import Script

logger = get_logger(__name__)
UNKNOWN_COMMIT = "0" * 40


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
    if processes is not None and slurm:
        raise UserError(
            "--processes is for the trainings of this machine",
            f"with --slurm set it in the recipe: pretrain.processes={processes} kto.processes={processes}",
        )
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
    loaded = load_recipe(recipe, overrides or ())
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
    from ladle.launch.profile import has_gpus, load_profile
    from ladle.launch.queue import SLURM_FOLDER, Ledger
    from ladle.launch.script import Call
    from ladle.launch.submit import keep_commits, keep_recipe, make_scripts, require_sbatch, submit

    profile = load_profile(profile_path)
    if profile.has_gpus is None:
        profile = profile.model_copy(update={"has_gpus": has_gpus()})
    if not dry_run:
        require_sbatch()
    steps, workspace = load_steps(recipe, overrides, root, resolve=_commit_if_told if dry_run else resolve_commit)
    plan, folder = make_plan(steps, workspace), workspace.folder / SLURM_FOLDER
    call = Call(str(recipe), tuple(overrides), str(root), str(Path.cwd()), sys.executable)
    if dry_run:
        _print_scripts(make_scripts(make_jobs(plan, profile), profile, call, folder), as_json)
        return
    make_folder(folder)
    ledger = Ledger(folder)
    queued = ledger.in_queue()
    jobs = make_jobs(plan, profile, queued)
    commits = keep_commits(steps, folder)
    call = replace(call, recipe=str(keep_recipe(recipe, folder)), commits=str(commits) if commits else None)
    submitted = submit(make_scripts(jobs, profile, call, folder), ledger, queued)
    display.print_submitted(submitted, [(job.name, job.id) for job in queued.values()], as_json)


def _commit_if_told(kind: str, repo_id: str, revision: str | None) -> str:
    """Return a commit; a stand-in where the Hub cannot be asked, as scripts without it are the same but for its log."""
    try:
        return resolve_commit(kind, repo_id, revision)
    except HubUnreachable as error:
        logger.warning("%s; what reads it is shown as not finished", error.problem)
        return UNKNOWN_COMMIT


def _print_scripts(scripts: list[Script], as_json: bool) -> None:
    from ladle.launch.submit import sbatch_command

    if as_json:
        rows = [{"job": s.job.name, "after": list(s.job.after), "script": s.text} for s in scripts]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    for script in scripts:
        ids = {name: f"<{name}>" for name in script.job.after}
        sys.stdout.write(f"# ---- {script.path}: {' '.join(sbatch_command(script.job, ids))}\n{script.text}\n")
