"""Submitting the jobs of a recipe to Slurm, each after those it waits for, and where each is in the queue.

`jobs.json` beside the scripts names the newest job of each step. Slurm itself knows a job for some minutes after its
end (MinJobAge); of older ones it is only known here that they have left the queue.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ladle.artifacts.build import Workspace
from ladle.artifacts.files import hash_bytes, make_folder, pretty_json, write_text_durably
from ladle.artifacts.inputs import HubRepository
from ladle.artifacts.plan import PlannedStep, State
from ladle.artifacts.step import Step
from ladle.errors import CheckFailed, UserError
from ladle.hub import HubUnreachable, is_commit, name_of, resolve_commit
from ladle.launch.jobs import Job, SlurmProfile, has_gpus, make_jobs
from ladle.launch.script import Call, log_of, render, slurm_name
from ladle.log import get_logger

logger = get_logger(__name__)

UNKNOWN_COMMIT = "0" * 40
SLURM_FOLDER = "slurm"
"""Where a run keeps its jobs: scripts, logs, what was submitted."""
LEDGER = "jobs.json"
IN_QUEUE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "STAGE_OUT")
WELL_ENDED = "COMPLETED"


Queue = dict[tuple[str, str], list[tuple[str, str]]]
"""(State, reason) of jobs, of an array's tasks apart, by job id and Slurm's name for it."""


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
        """What distinguishes it from a job of another Slurm with its number."""
        return self.id, slurm_name(self.name)


class Ledger:
    """The submitted jobs of a recipe, in one small file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        rows = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else []
        self.jobs = [SubmittedJob(**row) for row in rows]

    def add(self, job: SubmittedJob) -> None:
        """Note a job; it takes the place of earlier ones of the same name and step."""
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
    described: dict[str, str | None] = {}
    for job in sorted(jobs, key=lambda job: not job.is_array):  # the shares come first, and count until they are done
        name = unfinished[job.fingerprint]
        described[name] = described.get(name) or _describe(job, states)
    return {name: text for name, text in described.items() if text is not None}


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
    """Note which commits the recipe's Hub names stand for now, so that all jobs read the same data; None: none.

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


@dataclass(frozen=True)
class Launched:
    """What a launch did: every script, each job that it submitted with its id, and those that were queued before."""

    scripts: list[Script]
    submitted: list[tuple[Job, str]]
    queued: list[SubmittedJob]


def launch(
    plan: list[PlannedStep], workspace: Workspace, call: Call, profile: SlurmProfile, dry_run: bool = False
) -> Launched:
    """Submit a job for each step that is neither finished nor in the queue; a dry run only makes the scripts.

    Raises:
        UserError: there is no sbatch, or it refuses a script; nothing of this launch is left in the queue then.
    """
    if profile.has_gpus is None:
        profile = profile.model_copy(update={"has_gpus": has_gpus()})
    folder = workspace.folder / SLURM_FOLDER
    logs = (folder / "logs").absolute()
    queued: dict[str, SubmittedJob] = {}
    if not dry_run:
        if shutil.which("sbatch") is None:
            problem = "there is no sbatch on this machine"
            raise UserError(problem, "run this on a login node, or look at the scripts with --dry-run")
        make_folder(folder)
        queued = Ledger(folder).in_queue()
        commits = keep_commits([planned.step for planned in plan], folder)
        recipe = keep_recipe(Path(call.recipe), folder)
        call = replace(call, recipe=str(recipe), commits=str(commits) if commits else None)
    jobs = make_jobs(plan, profile, queued)
    texts = {job.name: render(job, profile, call, logs) for job in jobs}
    scripts = [Script(job, folder / f"{job.name.replace('/', '-')}.sbatch", texts[job.name]) for job in jobs]
    submitted = [] if dry_run else submit(scripts, Ledger(folder), queued)
    return Launched(scripts, submitted, list(queued.values()))


def commit_if_known(kind: str, repo_id: str, revision: str | None) -> str:
    """Return a commit; a stand-in if the Hub cannot be reached, since scripts without it differ only in their log."""
    try:
        return resolve_commit(kind, repo_id, revision)
    except HubUnreachable as error:
        logger.warning("%s; what reads it is shown as not finished", error.problem)
        return UNKNOWN_COMMIT


def submit(scripts: list[Script], ledger: Ledger, queued: Mapping[str, SubmittedJob]) -> list[tuple[Job, str]]:
    """Write and submit the scripts, in order, and return each job with its Slurm id.

    Args:
        scripts: of the jobs, parents first.
        ledger: where they are noted.
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
            if submitted:
                subprocess.run(["scancel", *(number for _, number in submitted)], capture_output=True)
            lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.strip().splitlines()]
            raise UserError(
                f"sbatch refused {script.path}: {'; '.join(lines)}",
                "fix the profile (--profile), such as its partition, account or memory, and launch again; "
                "nothing of this launch is left in the queue",
            )
        number = ids[script.job.name] = done.stdout.strip().split(";")[0]
        submitted.append((script.job, number))
        log = log_of(script.job, logs, number, "*")
        ledger.add(SubmittedJob(script.job.name, script.job.step.fingerprint, number, log, script.job.shards > 0))
    return submitted


def sbatch_command(job: Job, ids: Mapping[str, str]) -> list[str]:
    """Return the command that submits a job, without its script; `ids` are those of the jobs that it waits for."""
    command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
    if job.after:
        command.append("--dependency=afterok:" + ":".join(ids[name] for name in job.after))
    return command
