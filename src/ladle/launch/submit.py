"""Writing the scripts of a recipe and handing them to sbatch, each after those it waits for."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ladle.artifacts.files import make_folder
from ladle.errors import CheckFailed, UserError
from ladle.launch.jobs import Job
from ladle.launch.profile import SlurmProfile
from ladle.launch.script import Call, render


@dataclass(frozen=True)
class Script:
    """A job with its script, as text and as a file."""

    job: Job
    path: Path
    text: str


def make_scripts(jobs: list[Job], profile: SlurmProfile, call: Call, folder: Path) -> list[Script]:
    """Return the scripts of all jobs, to be kept in `folder` beside their logs."""
    logs = (folder / "logs").absolute()
    return [Script(job, folder / job.file_name, render(job, profile, call, logs)) for job in jobs]


def submit(scripts: list[Script]) -> list[tuple[Job, str]]:
    """Write and submit the scripts, in order, and return each job with its Slurm id.

    Raises:
        UserError: there is no sbatch here.
        CheckFailed: sbatch refuses a script; those submitted before it are cancelled.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on this machine", "run this on a login node, or look at the scripts with --dry-run"
        )
    ids: dict[str, str] = {}
    for script in scripts:
        make_folder(script.path.parent / "logs")
        script.path.write_text(script.text, encoding="utf-8")
        done = subprocess.run(_command(script, ids), capture_output=True, text=True)
        if done.returncode != 0:
            _cancel(list(ids.values()))
            raise CheckFailed(f"sbatch refused {script.path} ({done.stderr.strip()}); the jobs before it are cancelled")
        ids[script.job.name] = done.stdout.strip().split(";")[0]
    return [(script.job, ids[script.job.name]) for script in scripts]


def _command(script: Script, ids: dict[str, str]) -> list[str]:
    command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
    if script.job.after:
        command.append("--dependency=afterok:" + ":".join(ids[name] for name in script.job.after))
    return [*command, str(script.path)]


def _cancel(ids: list[str]) -> None:
    if ids:
        subprocess.run(["scancel", *ids], capture_output=True)
