"""Writing the scripts of a recipe and handing them to sbatch, each after those it waits for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ladle.artifacts.files import hash_bytes, make_folder, pretty_json
from ladle.artifacts.step import HubRepository, Step
from ladle.errors import UserError
from ladle.hub import is_commit, name_of
from ladle.launch.jobs import Job
from ladle.launch.profile import SlurmProfile
from ladle.launch.queue import Ledger, SubmittedJob
from ladle.launch.script import Call, log_of, render


@dataclass(frozen=True)
class Script:
    """A job with its script, as text and as a file."""

    job: Job
    path: Path
    text: str


def keep_recipe(recipe: Path, folder: Path) -> Path:
    """Copy the recipe to a name that says its content, so that jobs run what was submitted whatever becomes of it."""
    text = recipe.read_bytes()
    copy = folder / f"recipe-{hash_bytes(text)[:12]}.yaml"
    copy.write_bytes(text)
    return copy


def keep_commits(steps: list[Step], folder: Path) -> Path | None:
    """Write down which commits the recipe's Hub names stand for now, so that all jobs read the same data; None: none.

    Without it, a job that starts days later would take a branch that has moved for another dataset, and begin anew.
    """
    items = [item for step in steps for items in step.inputs.values() for item in items]
    moving = [item for item in items if isinstance(item, HubRepository) and not is_commit(item.revision or "")]
    commits = {name_of(item.kind, item.repo_id, item.revision): item.commit for item in moving}
    if not commits:
        return None
    text = pretty_json(commits)
    path = folder / f"commits-{hash_bytes(text.encode())[:12]}.json"
    path.write_text(text, encoding="utf-8")
    return path


def make_scripts(jobs: list[Job], profile: SlurmProfile, call: Call, folder: Path) -> list[Script]:
    """Return the scripts of all jobs, to be kept in `folder` beside their logs."""
    logs = (folder / "logs").absolute()
    return [Script(job, folder / job.file_name, render(job, profile, call, logs)) for job in jobs]


def require_sbatch() -> None:
    """Check that jobs can be submitted from here.

    Raises:
        UserError: there is no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on this machine", "run this on a login node, or look at the scripts with --dry-run"
        )


def submit(scripts: list[Script], ledger: Ledger, queued: Mapping[str, SubmittedJob]) -> list[tuple[Job, str]]:
    """Write and submit the scripts, in order, and return each job with its Slurm id.

    Args:
        scripts: of the jobs, parents first.
        ledger: where they are written down.
        queued: jobs of earlier launches that are in the queue, by the step's fingerprint.

    Raises:
        UserError: sbatch refuses a script; those submitted before it are cancelled.
    """
    ids = {job.name: job.id for job in queued.values()}
    submitted: list[tuple[Job, str]] = []
    for script in scripts:
        logs = (script.path.parent / "logs").absolute()
        make_folder(logs)
        script.path.write_text(script.text, encoding="utf-8")
        done = subprocess.run([*sbatch_command(script.job, ids), str(script.path)], capture_output=True, text=True)
        if done.returncode != 0:
            _cancel([number for _, number in submitted])
            raise _refused(script, done.stderr)
        number = ids[script.job.name] = done.stdout.strip().split(";")[0]
        submitted.append((script.job, number))
        ledger.add(_written_down(script.job, number, logs))
    return submitted


def _written_down(job: Job, number: str, logs: Path) -> SubmittedJob:
    log = log_of(job, logs, number, "*")
    return SubmittedJob(job.name, job.step.fingerprint, number, log, is_array=job.shards > 0)


def _refused(script: Script, said: str) -> UserError:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in said.strip().splitlines()]
    return UserError(
        f"sbatch refused {script.path}: {'; '.join(lines)}",
        "mend the profile (--profile), such as its partition, account or memory, and launch again; "
        "nothing of this launch is left in the queue",
    )


def sbatch_command(job: Job, ids: Mapping[str, str]) -> list[str]:
    """Return the command that submits a job, short of its script; `ids` are those of the jobs that it waits for."""
    command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
    if job.after:
        command.append("--dependency=afterok:" + ":".join(ids[name] for name in job.after))
    return command


def _cancel(ids: list[str]) -> None:
    if ids:
        subprocess.run(["scancel", *ids], capture_output=True)
