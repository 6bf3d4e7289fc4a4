"""One job's sbatch script.

The script runs `ladle run RECIPE --only STEP`, passes on the signal that Slurm sends before the time limit, and puts
itself back into the queue where the command ends as stopped and resumable (exit code 75, or ended by that signal).
A job that Slurm itself takes away (preempted, requeued, cancelled) gets SIGTERM; what becomes of it is Slurm's to say.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ladle.artifacts.worker import JOB_ID, NODES, RENDEZVOUS
from ladle.errors import EXIT_RESUMABLE
from ladle.hub import COMMITS
from ladle.launch.jobs import Job, SlurmProfile

ENDED_BY = (128 + 10, 128 + 15)
"""Exit codes of a command that SIGUSR1 or SIGTERM ended: between trainings there is nothing to save."""
FIRST_PORT, NUM_PORTS = 20_000, 20_000


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
    """Return the script of a job."""
    parts = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in _options(job, profile, logs)),
        "set -eo pipefail",
        f"cd {shlex.quote(call.folder)}",
        *([f"export {COMMITS}={shlex.quote(call.commits)}"] if call.commits else []),
        *_environment(job, profile),
        *_rendezvous(job),
        "",
        *_run(job, profile, call),
    ]
    return "\n".join(parts) + "\n"


def log_of(job: Job, logs: Path, number: str, task: str) -> str:
    """Return the file that the output of job `number` goes to, of an array that of one task."""
    tag = f"{number}_{task}" if job.shards else number
    return f"{logs}/{slurm_name(job.name)}-{tag}.out"


def _options(job: Job, profile: SlurmProfile, logs: Path) -> list[str]:
    resources = job.resources
    wanted = {
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
    plain = ["requeue" if profile.requeue else "no-requeue"]
    options = [f"--{name}={shlex.quote(str(value))}" for name, value in wanted.items() if value is not None]
    return [*options, *(f"--{name}" for name in plain), *resources.options]


def _environment(job: Job, profile: SlurmProfile) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    if job.resources.cpus_per_task:
        lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun no longer takes it from sbatch')
    lines += [f"module load {' '.join(map(shlex.quote, profile.modules))}"] if profile.modules else []
    if profile.conda:
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(profile.conda)}"]
    if profile.venv:
        lines += [
            "# shellcheck disable=SC1091 # not there where this is checked",
            f"source {shlex.quote(profile.venv + '/bin/activate')}",
        ]
    return [*lines, *profile.setup]


def _rendezvous(job: Job) -> list[str]:
    if job.nodes == 1:
        return []
    return [
        f"export {NODES}={job.nodes}",
        f'export {JOB_ID}="$SLURM_JOB_ID"',
        f'{RENDEZVOUS}="$(hostname):$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))"',
        f"export {RENDEZVOUS}",
    ]


def _run(job: Job, profile: SlurmProfile, call: Call) -> list[str]:
    command = " ".join([*_container(profile), shlex.join(_ladle(job, profile, call)), *_shard(job)])
    requeue = [
        'if [ "$taken" = no ] && is_resumable "$code"; then',
        '  echo "stopped and saved (exit code $code): back into the queue"',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
    ]
    conditions = " || ".join(f'[ "$1" -eq {code} ]' for code in (EXIT_RESUMABLE, *ENDED_BY))
    return [
        f"is_resumable() {{ {conditions}; }}",
        "taken=no",
        f"{command} &",
        "child=$!",
        "trap 'kill -USR1 \"$child\"' USR1",
        "trap 'taken=yes; kill -TERM \"$child\"' TERM",
        'code=0; wait "$child" || code=$?',
        "# a trapped signal ends `wait` early",
        'while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done',
        *(requeue if profile.requeue else []),
        'exit "$code"',
    ]


def _ladle(job: Job, profile: SlurmProfile, call: Call) -> list[str]:
    brought = profile.conda or profile.venv or profile.container or profile.modules
    python = profile.python or ("python" if brought else call.python)
    return [python, "-m", "ladle", "run", call.recipe, *call.overrides, "--root", call.root, "--only", job.step.name]


def _shard(job: Job) -> list[str]:
    return [f'--shard "$SLURM_ARRAY_TASK_ID/{job.shards}"'] if job.shards else []


def _container(profile: SlurmProfile) -> list[str]:
    container = profile.container
    if container is None:
        return []
    if container.runtime == "apptainer":
        return [shlex.join(["apptainer", "exec", *container.options, container.image])]
    return [shlex.join(["srun", "--ntasks=1", f"--container-image={container.image}", *container.options])]
