"""Submitting the jobs of a recipe to Slurm, each after those it waits for, and where each is in the queue.

`jobs.json` beside the scripts names the newest job of each step. Slurm itself knows a job for some minutes after its
end (MinJobAge); of older ones it is only known here that they have left the queue.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ladle.artifacts.build import Workspace
from ladle.artifacts.files import hash_bytes, make_folder, pretty_json, write_text_durably
from ladle.artifacts.inputs import HubRepository
from ladle.artifacts.plan import PlannedStep, State
from ladle.errors import CheckFailed, UserError
from ladle.hub import HubUnreachable, is_commit, name_of, resolve_commit
from ladle.launch.jobs import Call, Job, SlurmProfile, has_gpus, make_jobs, render, slurm_name
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
        after: names of the jobs that it waits for.
    """

    name: str
    fingerprint: str
    id: str
    log: str
    is_array: bool
    after: Sequence[str] = ()


def submitted_jobs(folder: Path) -> list[SubmittedJob]:
    """Return the jobs that were submitted for a recipe: of each name and step the newest."""
    path = folder / LEDGER
    return [SubmittedJob(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def jobs_in_queue(folder: Path) -> dict[str, SubmittedJob]:
    """Return the jobs that build a step and have not ended, by the step's fingerprint."""
    jobs = [job for job in submitted_jobs(folder) if not job.is_array]
    queue = (ask_queue() or {}) if jobs else {}
    return {job.fingerprint: job for job in jobs if any(state in IN_QUEUE for state, _ in _tasks(job, queue))}


def _tasks(job: SubmittedJob, queue: Queue) -> list[tuple[str, str]]:
    """Return what Slurm says of a job; another Slurm may have one of its number, under another name."""
    return queue.get((job.id, slurm_name(job.name)), [])


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
    unfinished = {planned.step.fingerprint: planned.step.name for planned in plan if planned.state is not State.CACHED}
    jobs = [job for job in submitted_jobs(folder) if job.fingerprint in unfinished]
    queue = ask_queue() if jobs else {}
    described: dict[str, str] = {}
    for job in sorted(jobs, key=lambda job: not job.is_array):  # the shares come first, and count until they are done
        if text := _describe(job, queue):
            described.setdefault(unfinished[job.fingerprint], text)
    return described


def _describe(job: SubmittedJob, queue: Queue | None) -> str:
    """Return a word on a job; none for shares that are all done."""
    if queue is None:
        return f"job {job.id} was submitted, and there is no squeue here to ask: see {job.log}"
    tasks = _tasks(job, queue)
    for state, reason in tasks:
        if state not in (*IN_QUEUE, WELL_ENDED):
            if reason == "DependencyNeverSatisfied" or state == "CANCELLED" and not Path(job.log).is_file():
                return f"job {job.id} was cancelled: what it waited for did not end well"
            return f"job {job.id} {state.lower()}: see {job.log}"
    for state, reason in tasks:
        if state in IN_QUEUE:
            return f"job {job.id} {state.lower()}" + (f" ({reason})" if state == "PENDING" else "")
    return "" if job.is_array else f"job {job.id} has left the queue: see {job.log}"


@dataclass(frozen=True)
class Launched:
    """What a launch did: each job with its script, those that it submitted, and those that were queued before."""

    scripts: list[tuple[Job, str]]
    submitted: list[SubmittedJob]
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
        make_folder(logs)
        queued = jobs_in_queue(folder)
        call = _keep_what_is_launched(call, plan, folder)
    scripts = [(job, render(job, profile, call, logs)) for job in make_jobs(plan, profile, queued)]
    submitted = [] if dry_run else submit(scripts, logs, queued)
    return Launched(scripts, submitted, list(queued.values()))


def _keep_what_is_launched(call: Call, plan: list[PlannedStep], folder: Path) -> Call:
    """Copy the recipe, and note the commits that its Hub names stand for now: jobs run what was submitted.

    Without them a job that starts days later would take a file that was edited since, or a branch that has moved.
    """

    def keep(content: bytes, name: str, suffix: str) -> str:
        path = folder / f"{name}-{hash_bytes(content)[:12]}{suffix}"
        path.write_bytes(content)
        return str(path)

    items = [item for planned in plan for items in planned.step.inputs.values() for item in items]
    moving = [item for item in items if isinstance(item, HubRepository) and not is_commit(item.revision or "")]
    commits = {name_of(item.kind, item.repo_id, item.revision): item.commit for item in moving}
    noted = keep(pretty_json(commits).encode(), "commits", ".json") if commits else None
    return replace(call, recipe=keep(Path(call.recipe).read_bytes(), "recipe", ".yaml"), commits=noted)


def commit_if_known(kind: str, repo_id: str, revision: str | None) -> str:
    """Return a commit; a stand-in if the Hub cannot be reached, since scripts without it differ only in their log."""
    try:
        return resolve_commit(kind, repo_id, revision)
    except HubUnreachable as error:
        logger.warning("%s; what reads it is shown as not finished", error.problem)
        return UNKNOWN_COMMIT


def submit(scripts: list[tuple[Job, str]], logs: Path, queued: Mapping[str, SubmittedJob]) -> list[SubmittedJob]:
    """Write and submit the scripts, in order, and return the jobs.

    Args:
        scripts: of the jobs, parents first.
        logs: the folder of the jobs' output; scripts, and what was submitted, are beside it.
        queued: jobs of earlier launches that are in the queue, by the step's fingerprint.

    Raises:
        UserError: sbatch refuses a script; those submitted before it are cancelled.
    """
    ids = {job.name: job.id for job in queued.values()}
    submitted: list[SubmittedJob] = []
    for job, text in scripts:
        path = logs.parent / f"{job.name.replace('/', '-')}.sbatch"
        path.write_text(text, encoding="utf-8")
        done = subprocess.run([*sbatch_command(job, ids), str(path)], capture_output=True, text=True)
        if done.returncode != 0:
            if submitted:
                subprocess.run(["scancel", *(one.id for one in submitted)], capture_output=True)
            lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.strip().splitlines()]
            fix = "fix the profile (--profile), such as its partition, account or memory, and launch again; "
            fix += "nothing of this launch is left in the queue"
            raise UserError(f"sbatch refused {path}: {'; '.join(lines)}", fix)
        number = ids[job.name] = done.stdout.strip().split(";")[0]
        log, fingerprint = job.log(logs, number, "*"), job.step.fingerprint
        submitted.append(SubmittedJob(job.name, fingerprint, number, log, job.shards > 0, job.after))
        kept = [one for one in submitted_jobs(logs.parent) if (one.name, one.fingerprint) != (job.name, fingerprint)]
        write_text_durably(logs.parent / LEDGER, pretty_json([asdict(one) for one in (*kept, submitted[-1])]))
    return submitted


def sbatch_command(job: Job, ids: Mapping[str, str]) -> list[str]:
    """Return the command that submits a job, without its script; `ids` are those of the jobs that it waits for."""
    after = ["--dependency=afterok:" + ":".join(ids[name] for name in job.after)] if job.after else []
    return ["sbatch", "--parsable", "--kill-on-invalid-dep=yes", *after]
