"""From the steps of a recipe to Slurm jobs: which are needed, what each waits for, what each requests, its script.

What jobs request, and how they find Ladle, is a cluster's profile; `recipes/slurm/*.yaml` hold examples.

A script runs `ladle run RECIPE --only STEP`, passes on the signal that Slurm sends before the time limit, and puts
itself back into the queue where the command ends as stopped and resumable (exit code 75, or ended by that signal).
A job that Slurm itself takes away (preempted, requeued, cancelled) gets SIGTERM; what becomes of it is Slurm's to say.
"""

from __future__ import annotations

import difflib
import shlex
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ladle.artifacts.plan import PlannedStep, State
from ladle.artifacts.step import Step
from ladle.config import Config
from ladle.config_file import ConfigFile
from ladle.errors import EXIT_RESUMABLE, UserError
from ladle.pipeline import STEP_NAMES

RESUMABLE = (EXIT_RESUMABLE, 128 + 10, 128 + 15)
"""Exit codes of a command that can be run again: the last two are SIGUSR1 and SIGTERM, which end it between trainings,
where there is nothing to save."""


class Resources(Config):
    """What one job asks for; unset leaves it to the cluster, or to the profile's general value."""

    partition: str | None = None
    time: str | None = Field(None, pattern=r"^(\d+-)?\d+(:\d+){0,2}$")
    """Longest run, as sbatch takes it: `minutes`, `hours:minutes:seconds`, `days-hours`."""
    nodes: int | None = Field(None, ge=1)
    """Machines of a training job; each runs the recipe's `processes`."""
    gpus_per_node: int | None = Field(None, ge=0)
    """Unset: as many as the step has processes or workers, where the profile has GPUs at all."""
    cpus_per_task: int | None = Field(None, ge=1)
    memory: str | None = Field(None, coerce_numbers_to_str=True)
    """Memory of a node, as sbatch takes it: `64G`."""
    shards: int | None = Field(None, ge=1)
    """Array tasks that share a mix, rollout or evaluate step out before it is put together."""
    options: list[str] = []
    """More sbatch options, such as `--constraint=a800`."""

    @field_validator("time", mode="before")
    @classmethod
    def _in_quotes(cls, time: Any) -> Any:
        if isinstance(time, int):  # YAML reads 24:00:00 as 86400, which sbatch would take for minutes
            raise UserError(f"time is {time} without quotes, a number to YAML", 'put it in quotes: time: "24:00:00"')
        return time


class Container(Config):
    """An image that the steps run in, by the cluster's container runtime."""

    image: str
    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """`apptainer exec IMAGE`, or pyxis' `srun --container-image`."""
    options: list[str] = []
    """More options of the runtime, such as `--nv` and `--bind /data`."""


class SlurmProfile(Resources):
    """Everything that the scripts of one cluster share; `steps` changes some of it for steps by name."""

    account: str | None = None
    qos: str | None = None
    has_gpus: bool | None = None
    """Whether jobs of training, rollouts and evaluation ask for GPUs; unset asks Slurm, and means yes without one."""
    modules: list[str] = []
    """Environment modules to load, such as `cuda/12.2`."""
    conda: str | None = None
    """Conda environment to activate."""
    venv: str | None = None
    """Folder of a virtual environment to activate."""
    setup: list[str] = []
    """More shell lines before Ladle starts."""
    container: Container | None = None
    python: str | None = None
    """The Python that has Ladle; unset is `python` of the module, conda, venv or container, else the one running."""
    environment: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = {}
    """Variables of the jobs: HF_ENDPOINT, XDG_CACHE_HOME, NCCL_DEBUG, …"""
    signal_seconds: int = Field(300, ge=0, le=65_535)
    """Seconds before the time limit at which a job gets a signal to save and stop; it is then requeued. 0: never."""
    requeue: bool = True
    """Put a job that was preempted, or stopped to save, back into the queue."""
    steps: dict[str, Resources] = {}
    """Resources by step name or glob (`evaluate/*`), over the general ones."""

    @field_validator("steps")
    @classmethod
    def _are_steps(cls, steps: dict[str, Resources]) -> dict[str, Resources]:
        for pattern in steps:
            first = pattern.partition("/")[0]
            if not any(fnmatch(name, first) for name in STEP_NAMES):
                close = difflib.get_close_matches(first, STEP_NAMES, n=1)
                fix = f"did you mean {close[0]!r}?" if close else f"steps begin with {', '.join(STEP_NAMES)}"
                raise UserError(f"no recipe has a step {pattern!r}", fix)
        return steps

    def of_step(self, name: str) -> Resources:
        """Return the resources of one step: the general ones, then those of every matching entry, in order."""
        values = {field: getattr(self, field) for field in Resources.model_fields}
        for pattern, resources in self.steps.items():
            if fnmatch(name, pattern):
                values |= {field: value for field, value in resources if field in resources.model_fields_set}
        return Resources.model_validate(values)


def has_gpus() -> bool:
    """Tell whether Slurm has any node with GPUs; yes where there is no Slurm to ask."""
    command = ["sinfo", "--noheader", "--format=%G"]
    if shutil.which(command[0]) is None:
        return True
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode != 0 or not done.stdout.strip() or "gpu" in done.stdout


def load_profile(path: Path | None) -> SlurmProfile:
    """Read a profile, or return the one that asks for nothing.

    Raises:
        UserError: there is no such file, or a fault of it, with its key and line.
    """
    return ConfigFile.read(path, "profile").validate(SlurmProfile) if path else SlurmProfile.model_validate({})


def slurm_name(job: str) -> str:
    """Return what Slurm calls a job."""
    return f"ladle-{job.replace('/', '-')}"


@dataclass(frozen=True)
class Job:
    """One Slurm job.

    Attributes:
        name: unique among the recipe's jobs; the step's, or `<step>.shards` for the array before it.
        step: what it builds or shares out.
        after: names of the jobs that must have ended well.
        resources: what it asks for.
        shards: array tasks; 0 for a plain job.
        nodes: machines.
        gpus: GPUs on each.
    """

    name: str
    step: Step
    after: tuple[str, ...]
    resources: Resources
    shards: int
    nodes: int
    gpus: int

    def log(self, logs: Path, number: str, task: str) -> str:
        """Return the file that the output of job `number` goes to, of an array that of one task."""
        return f"{logs}/{slurm_name(self.name)}-{f'{number}_{task}' if self.shards else number}.out"


def make_jobs(plan: list[PlannedStep], profile: SlurmProfile, queued: Collection[str] = ()) -> list[Job]:
    """Return the jobs of every step that is neither finished nor in the queue, parents first.

    Args:
        plan: the recipe's steps, parents first.
        profile: what the cluster's jobs ask for.
        queued: fingerprints of the steps whose jobs are in the queue; a job waits for those too.

    Raises:
        UserError: the profile shares out or spreads over nodes a step that cannot be.
    """
    wanted = {id(planned.step): planned.step.name for planned in plan if planned.state is not State.CACHED}
    jobs: list[Job] = []
    for step in (planned.step for planned in plan):
        if id(step) in wanted and step.fingerprint not in queued:
            after = tuple(wanted[id(parent)] for parent in step.parents() if id(parent) in wanted)
            jobs += _jobs_of(step, after, profile)
    return jobs


def _jobs_of(step: Step, after: tuple[str, ...], profile: SlurmProfile) -> list[Job]:
    resources, config = profile.of_step(step.name), step.config
    nodes = (resources.nodes or 1) if hasattr(config, "processes") else 1
    if nodes > 1 and profile.container is not None:
        problem = f"{step.name} is to run on {nodes} nodes in a container, from which the other nodes cannot be started"
        fix = "use a conda or virtual environment on the shared file system for several nodes, or nodes: 1"
        raise UserError(problem, fix)
    gpus = 0 if profile.has_gpus is False else step.stage.num_gpus(config)
    if gpus and resources.gpus_per_node is not None:
        gpus = resources.gpus_per_node
    shards = resources.shards or 1
    if step.stage.run_shard is None:
        shards = 1
        if (named := profile.steps.get(step.name)) is not None and (named.shards or 1) > 1:
            problem = f"the profile shares {step.name} out over {named.shards} array tasks, and it is one piece"
            raise UserError(problem, f"leave steps.{step.name}.shards out")
    if shards == 1:
        return [Job(step.name, step, after, resources, 0, nodes, gpus)]
    shares = Job(f"{step.name}.shards", step, after, resources, shards, 1, min(gpus, 1))
    return [shares, Job(step.name, step, (*after, shares.name), resources, 0, 1, gpus)]


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


def render(job: Job, profile: SlurmProfile, call: Call, logs: Path) -> str:
    """Return the script of a job, `job.sbatch` filled in."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["slurm_name"] = slurm_name
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    template = environment.from_string(files("ladle.launch").joinpath("job.sbatch").read_text(encoding="utf-8"))
    output = job.log(Path(str(logs).replace("%", "%%")), "%A" if job.shards else "%j", "%a")
    command = _command(job, profile, call)
    return template.render(job=job, profile=profile, call=call, output=output, command=command, resumable=RESUMABLE)


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
