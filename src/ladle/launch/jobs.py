"""From the steps of a recipe to Slurm jobs: which are needed, what each waits for, what each asks for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ladle.artifacts.plan import PlannedStep, State
from ladle.artifacts.step import Step
from ladle.errors import UserError
from ladle.launch.profile import Resources, SlurmProfile


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

    @property
    def file_name(self) -> str:
        """The name of its script."""
        return self.name.replace("/", "-") + ".sbatch"


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
    for planned in plan:
        step = planned.step
        if id(step) in wanted and step.fingerprint not in queued:
            after = tuple(wanted[id(parent)] for parent in step.parents() if id(parent) in wanted)
            jobs += _jobs_of(step, after, profile)
    return jobs


def _jobs_of(step: Step, after: tuple[str, ...], profile: SlurmProfile) -> list[Job]:
    resources = profile.of_step(step.name)
    nodes, gpus = _nodes(step, resources, profile), _gpus(step, resources, profile)
    if not resources.shards or resources.shards == 1 or step.stage.run_shard is None:
        _refuse_shards(step, profile)
        return [Job(step.name, step, after, resources, 0, nodes, gpus)]
    shares = Job(f"{step.name}.shards", step, after, resources, resources.shards, 1, min(gpus, 1))
    return [shares, Job(step.name, step, (*after, shares.name), resources, 0, 1, gpus)]


def _nodes(step: Step, resources: Resources, profile: SlurmProfile) -> int:
    nodes = (resources.nodes or 1) if hasattr(step.config, "processes") else 1
    if nodes > 1 and profile.container is not None:
        raise UserError(
            f"{step.name} is to run on {nodes} nodes in a container, from which the other nodes cannot be started",
            "use a conda or virtual environment on the shared file system for several nodes, or nodes: 1",
        )
    return nodes


def _gpus(step: Step, resources: Resources, profile: SlurmProfile) -> int:
    if not step.stage.wants_gpus or profile.has_gpus is False:
        return 0
    if resources.gpus_per_node is not None:
        return resources.gpus_per_node
    return getattr(step.config, "processes", None) or getattr(step.config, "workers", None) or 1


def _refuse_shards(step: Step, profile: SlurmProfile) -> None:
    own = profile.steps.get(step.name)
    if own is not None and (own.shards or 1) > 1:
        raise UserError(
            f"the profile shares {step.name} out over {own.shards} array tasks, and it is one piece",
            f"leave steps.{step.name}.shards out",
        )
