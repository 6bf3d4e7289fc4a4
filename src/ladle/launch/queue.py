"""The jobs that launches of a recipe have handed to Slurm, and where each stands in its queue.

`jobs.json` beside the scripts names the newest job of each step. Slurm itself tells of a job for some minutes after
its end (MinJobAge); of older ones it is only known here that they have left the queue.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from ladle.artifacts.files import pretty_json, write_text_durably
from ladle.artifacts.plan import PlannedStep, State
from ladle.errors import CheckFailed

SLURM_FOLDER = "slurm"
"""Where a run keeps its jobs: scripts, logs, what was submitted."""
LEDGER = "jobs.json"
IN_QUEUE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "STAGE_OUT")
WELL_ENDED = "COMPLETED"


Queue = dict[tuple[str, str], list[tuple[str, str]]]
"""(State, reason) of jobs, of an array's tasks apart, by job id and Slurm's name for it."""


def slurm_name(job: str) -> str:
    """Return what Slurm calls the job."""
    return f"ladle-{job.replace('/', '-')}"


@dataclass(frozen=True)
class SubmittedJob:
    """A job that sbatch took.

    Attributes:
        name: the job's, unique in the recipe.
        fingerprint: of the step that it builds or works shares of.
        id: Slurm's number.
        log: where its output is, `*` standing for the number of an array's task.
        is_array: it works shares, and another job puts them together.
    """

    name: str
    fingerprint: str
    id: str
    log: str
    is_array: bool

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from a job of another Slurm that has its number."""
        return self.id, slurm_name(self.name)


class Ledger:
    """The submitted jobs of a recipe, in one small file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        rows = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else []
        self.jobs = [SubmittedJob(**row) for row in rows]

    def add(self, job: SubmittedJob) -> None:
        """Write down a job; it takes the place of earlier ones of the same name and step."""
        kept = [one for one in self.jobs if (one.name, one.fingerprint) != (job.name, job.fingerprint)]
        self.jobs = [*kept, job]
        write_text_durably(self.path, pretty_json([asdict(one) for one in self.jobs]))

    def in_queue(self) -> dict[str, SubmittedJob]:
        """Return the jobs that build a step and have not ended, by the step's fingerprint."""
        states = (ask_queue() or {}) if self.jobs else {}
        return {
            job.fingerprint: job
            for job in self.jobs
            if not job.is_array and any(state in IN_QUEUE for state, _ in states.get(job.key, ()))
        }


def ask_queue() -> Queue | None:
    """Return what Slurm says of this user's jobs; None without Slurm.

    Raises:
        CheckFailed: squeue is there and does not answer.
    """
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--me", "--noheader", "--states=all", "--format=%F|%j|%T|%r"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CheckFailed(f"squeue does not answer ({done.stderr.strip()}), so nothing is known of the jobs")
    found: Queue = {}
    for line in done.stdout.splitlines():
        number, name, state, reason = line.strip().split("|", 3)
        found.setdefault((number, name), []).append((state, reason))
    return found


def describe_jobs(plan: list[PlannedStep], folder: Path) -> dict[str, str]:
    """Return what became of the job of each unfinished step that has one, by the step's name."""
    ledger = Ledger(folder)
    unfinished = {planned.step.fingerprint: planned.step.name for planned in plan if planned.state is not State.CACHED}
    jobs = [job for job in ledger.jobs if job.fingerprint in unfinished]
    states = ask_queue() if jobs else {}
    told: dict[str, str] = {}
    for job in sorted(jobs, key=lambda job: not job.is_array):  # the shares come first, and count until they are done
        if told.get(unfinished[job.fingerprint]) is None:
            text = _describe(job, states)
            if text is not None:
                told[unfinished[job.fingerprint]] = text
    return told


def _describe(job: SubmittedJob, states: Queue | None) -> str | None:
    """Return a word on a job; None for shares that are all done."""
    if states is None:
        return f"job {job.id} was submitted, and there is no squeue here to ask: see {job.log}"
    tasks = states.get(job.key, [])
    failed = [one for one in tasks if one[0] not in (*IN_QUEUE, WELL_ENDED)]
    active = [one for one in tasks if one[0] in IN_QUEUE]
    if failed:
        state, reason = failed[0]
        if reason == "DependencyNeverSatisfied" or state == "CANCELLED" and not Path(job.log).is_file():
            return f"job {job.id} was cancelled: what it waited for did not end well"
        return f"job {job.id} {state.lower()}: see {job.log}"
    if active:
        state, reason = active[0]
        return f"job {job.id} {state.lower()}" + (f" ({reason})" if state == "PENDING" else "")
    if job.is_array:
        return None
    return f"job {job.id} has left the queue: see {job.log}"
