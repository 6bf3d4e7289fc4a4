"""One job's sbatch script.

The script runs `ladle run RECIPE --only STEP`, passes on the signal that Slurm sends before the time limit, and puts
itself back into the queue where the command ends as stopped and resumable (exit code 75, or ended by that signal).
A job that Slurm itself takes away (preempted, requeued, cancelled) gets SIGTERM; what becomes of it is Slurm's to say.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ladle.errors import EXIT_RESUMABLE
from ladle.launch.jobs import Job, SlurmProfile

RESUMABLE = (EXIT_RESUMABLE, 128 + 10, 128 + 15)
"""Exit codes of a command that can be run again: the last two are SIGUSR1 and SIGTERM, which end it between trainings,
where there is nothing to save."""


@dataclass(frozen=True)
class Call:
    """How Ladle was called.

    Attributes:
        recipe: its file.
        overrides: of the recipe.
        root: where runs are kept.
        folder: the one it was called in.
        python: the one it runs in.
        commits: the file that says which commits the recipe's Hub names stand for, where it has such names.
    """

    recipe: str
    overrides: tuple[str, ...]
    root: str
    folder: str
    python: str
    commits: str | None = None


def slurm_name(job: str) -> str:
    """Return what Slurm calls the job."""
    return f"ladle-{job.replace('/', '-')}"


def render(job: Job, profile: SlurmProfile, call: Call, logs: Path) -> str:
    """Return the script of a job, `job.sbatch` filled in."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    template = environment.from_string(files("ladle.launch").joinpath("job.sbatch").read_text(encoding="utf-8"))
    options, command = _options(job, profile, logs), _command(job, profile, call)
    return template.render(job=job, profile=profile, call=call, options=options, command=command, resumable=RESUMABLE)


def log_of(job: Job, logs: Path, number: str, task: str) -> str:
    """Return the file that the output of job `number` goes to, of an array that of one task."""
    tag = f"{number}_{task}" if job.shards else number
    return f"{logs}/{slurm_name(job.name)}-{tag}.out"


def _options(job: Job, profile: SlurmProfile, logs: Path) -> dict[str, Any]:
    """Return what the job requests of sbatch; None is left out."""
    resources = job.resources
    return {
        "job-name": slurm_name(job.name),
        "output": log_of(job, Path(str(logs).replace("%", "%%")), "%A" if job.shards else "%j", "%a"),
        "open-mode": "append",
        "account": profile.account,
        "qos": profile.qos,
        "partition": resources.partition,
        "time": resources.time,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus_per_task,
        "mem": resources.memory,
        "gpus-per-node": job.gpus or None,
        "array": f"0-{job.shards - 1}" if job.shards else None,
        "signal": f"B:USR1@{profile.signal_seconds}" if profile.signal_seconds else None,
    }


def _command(job: Job, profile: SlurmProfile, call: Call) -> str:
    """Return the command that builds the step, or works a share of it, in the profile's environment."""
    brought = profile.conda or profile.venv or profile.container or profile.modules
    python = profile.python or ("python" if brought else call.python)
    words = [python, "-m", "ladle", "run", call.recipe, *call.overrides, "--root", call.root, "--only", job.step.name]
    if (container := profile.container) is not None and container.runtime == "apptainer":
        words = ["apptainer", "exec", *container.options, container.image, *words]
    elif container is not None:
        words = ["srun", "--ntasks=1", f"--container-image={container.image}", *container.options, *words]
    share = f' --shard "$SLURM_ARRAY_TASK_ID/{job.shards}"' if job.shards else ""
    return shlex.join(words) + share
