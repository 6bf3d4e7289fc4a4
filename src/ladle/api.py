"""The front door: everything `ladle` does, as functions that return objects. The command line calls nothing else.

    run = ladle.open("recipes/quickstart.yaml", overrides={"kto.beta": 0.2})
    run.build("pretrain").checkpoints
    ladle.evaluate("my-model", ["gsm8k"], limit=200)["gsm8k"].interval

Free of torch until something runs. A *reference* names an artifact: its folder, or `RECIPE:STEP`, such as
`recipes/quickstart.yaml:kto`.
"""

from __future__ import annotations

import json
import sys
import time
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, overload

from ladle.artifacts.build import (
    TrackedRun,
    Workspace,
    build_shard,
    builders_of,
    recorded_paths,
    reports_of,
    resumption,
)
from ladle.artifacts.build import build as build_step
from ladle.artifacts.files import hash_bytes
from ladle.artifacts.inputs import InputFinder, LocalFiles, natural_key
from ladle.artifacts.plan import PlannedStep, State, make_plan
from ladle.artifacts.record import RECORD_NAME, read_record
from ladle.artifacts.record import verify as find_faults
from ladle.artifacts.step import Step, in_build_order
from ladle.config_file import ConfigFile
from ladle.errors import UserError
from ladle.executors import Shard
from ladle.hub import Resolve, resolve_commit
from ladle.log import get_logger, progress
from ladle.models.config import InitConfig, model_dir
from ladle.pipeline import Pipeline
from ladle.recipe import Recipe, load_recipe, make_recipe, with_processes
from ladle.recipe import recipe_schema as recipe_schema
from ladle.templates import TEMPLATES as TEMPLATES
from ladle.templates import write_template as write_template
from ladle.training.config import DEFAULT_TRACKER, TrainingConfig

if TYPE_CHECKING:
    from ladle.checkup import Finding
    from ladle.conversation import Chat, ChatStyle
    from ladle.evaluation.compare import Comparison
    from ladle.evaluation.rescore import Rescored
    from ladle.excerpts import Excerpt
    from ladle.generation.request import Sample, SamplingConfig
    from ladle.grading.verdict import Grade
    from ladle.launch.queue import Launched
    from ladle.preflight.rehearse import Rehearsal
    from ladle.reporting.collect import Change

logger = get_logger(__name__)

DEFAULT_ROOT = "runs"
RECIPE_SUFFIXES = (".yaml", ".yml")
Reference = str | Path
Out = Reference | None
"""The folder that becomes the artifact; None is one below the root."""
Overrides = Mapping[str, Any] | Sequence[str] | str | None
"""Values that replace a recipe's: `{"kto.beta": 0.2}`, or `["kto.beta=0.2"]` as on a command line."""


class Artifact:
    """The folder that a finished step left, and what its record says.

    Attributes:
        path: the folder.
        record: all that record.json holds.
        name: the step's name in its recipe.
        stage: what kind of step made it.
        digest: equal for equal results.
        counters: what was read, written and left out.
        metrics: what was measured of the result.
        warnings: what the stage warned of.
        seconds: how long the build took, without the tries that were stopped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = read_record(path)
        self.name: str = self.record["name"]
        self.stage: str = self.record["stage"]
        self.digest: str = self.record["digest"]
        self.counters: dict[str, int] = self.record["counters"]
        self.metrics: dict[str, Any] = self.record["metrics"]
        self.warnings: list[str] = self.record.get("warnings", [])
        self.seconds: float = self.record["timings"]["seconds"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def size_bytes(self) -> int:
        """What its files take."""
        return sum(entry["size_bytes"] for entry in self.record["files"].values())

    @property
    def model(self) -> Path:
        """The folder of its model, which `from_pretrained` loads.

        Raises:
            UserError: it holds no model.
        """
        return model_dir(self.path)

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints of a training that were kept, oldest first."""
        return sorted(self.path.glob("checkpoints/checkpoint-*"), key=natural_key)


@dataclass(frozen=True)
class Score:
    """One model on one benchmark.

    Attributes:
        accuracy: mean over items of the share of right samples, 0 to 1.
        interval: its 95 % interval (Wilson).
        n: items.
        counts: samples by verdict (correct, wrong, unparsed, timeout), and those that were truncated.
        pass_at_k: share of the items solved by one of k samples (unbiased), by k; empty for one sample an item.
        token_entropy: mean entropy of the sampled tokens in nats; None where it is not known.
    """

    accuracy: float
    interval: tuple[float, float]
    n: int
    counts: dict[str, int]
    pass_at_k: dict[int, float]
    token_entropy: float | None


class Evaluation(Artifact, UserDict[str, Score]):
    """The scores of one model by benchmark."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.data = {}
        for benchmark, measured in self.metrics.items():
            counts = dict(measured)
            accuracy, low, high, n = (counts.pop(name) for name in ("accuracy", "low", "high", "n"))
            curve = {int(k): share for k, share in counts.pop("pass_at_k", {}).items()}
            entropy = counts.pop("token_entropy", None)
            self.data[benchmark] = Score(accuracy, (low, high), n, counts, curve, entropy)


@dataclass(frozen=True)
class StepStatus:
    """How far one step is.

    Attributes:
        step: its name.
        state: done, running, resume, new or changed.
        seconds: what it took; None unless it is done.
        size_bytes: what it holds.
        building: host and pid of the process that builds it now, and since when.
        job: what became of its Slurm job.
        left_seconds: about what it takes from now on, by an earlier build of it, or of its stage in this run; None
            where there is none.
        progress: what each process that builds it says.
    """

    step: str
    state: str
    seconds: float | None = None
    size_bytes: int = 0
    building: dict[str, Any] | None = None
    job: str | None = None
    left_seconds: float | None = None
    progress: Sequence[str] = ()


class Run:
    """A recipe's steps, by name and parents first, and what of them is built; with `only`, that one and all it needs.

    Members of a soup whose folder is given, and new, are hashed while they are averaged: its place does not follow
    from the hashes.
    """

    def __init__(
        self,
        recipe: Recipe,
        root: Reference,
        only: str | None = None,
        out: Out = None,
        resolve: Resolve = resolve_commit,
    ) -> None:
        self.recipe = recipe
        place = Path(out or ".") if Path(out or ".").name else Path.cwd()
        placed = ((only, place),) if only is not None and out is not None else ()
        self.workspace = Workspace(Path(root) / recipe.name, placed)
        is_new_soup = only == "soup" and out is not None and not (Path(out) / RECORD_NAME).is_file()
        pipeline = Pipeline(recipe, InputFinder(Path(root), resolve), reads_members_once=is_new_soup)
        self.steps = {step.name: step for step in pipeline.in_build_order()}
        self.workspace = replace(self.workspace, tracked=_tracked_run(self.steps.values(), self.workspace.folder))
        if only is not None:
            self.steps = {step.name: step for step in in_build_order([self._step(only)])}

    def plan(self) -> list[PlannedStep]:
        """Return what a run does with each step (cached, resume, new, changed), and why."""
        return make_plan(list(self.steps.values()), self.workspace)

    @overload
    def build(self, step: str) -> Artifact: ...
    @overload
    def build(self, step: None = None) -> dict[str, Artifact]: ...
    def build(self, step: str | None = None) -> Artifact | dict[str, Artifact]:
        """Build one step and all it needs, or every step; finished ones are kept, stopped ones resume.

        Raises:
            UserError: an input is wrong.
            CheckFailed: a check of a stage on its own work did not hold.
            Preempted: a signal stopped it; the same call resumes.
        """
        self._build(in_build_order([self._step(step)] if step else list(self.steps.values())))
        return self[step] if step else {name: self[name] for name in self.steps}

    def build_shard(self, step: str, shard: Shard) -> None:
        """Work one share of a step, once all that it needs is built."""
        *parents, last = in_build_order([self._step(step)])
        self._build(parents)
        build_shard(last, self.workspace, shard)

    def _build(self, steps: list[Step]) -> None:
        """Build those of the steps, parents first, that are not finished, and say so."""
        from ladle.live import shown

        with shown(self):
            for planned in make_plan(steps, self.workspace):
                name, why = planned.step.name, "; ".join(planned.reasons)
                if planned.state is State.CACHED:
                    warnings = len(Artifact(planned.path).warnings)
                    logger.info("%s: cached%s", name, f", with {warnings} warning(s)" if warnings else "")
                    continue
                logger.info("%s: %s%s", name, planned.state, f" ({why})" if why else "")
                started = time.monotonic()
                try:
                    made = _artifact(build_step(planned.step, self.workspace))
                except KeyboardInterrupt:
                    done = sum((self.workspace.path_of(step) / RECORD_NAME).is_file() for step in steps)
                    how = resumption(planned.step, self.workspace)
                    logger.warning("%d of %d steps are done and kept; %s %s", done, len(steps), name, how)
                    raise
                if self.workspace.tracked is not None and (isinstance(made, Evaluation) or made.stage == "report"):
                    _track(made, self.workspace.tracked)
                logger.info("%s: done in %.1f s", name, time.monotonic() - started)

    def __getitem__(self, step: str) -> Artifact:
        """Return a finished step.

        Raises:
            UserError: the recipe has no such step, or it is not built.
        """
        path = self.path_of(step)
        if not (path / RECORD_NAME).is_file():
            command = f"ladle run {self.recipe.source or 'RECIPE'} --only {step}"
            raise UserError(f"{step} is not built ({path})", command)
        return _artifact(path)

    def path_of(self, step: str) -> Path:
        """Return the folder that a step has or will have."""
        return self.workspace.path_of(self._step(step))

    @property
    def scores(self) -> dict[str, Evaluation]:
        """The finished evaluations, by the name of the model; of several evaluations by `NAME/MODEL`."""
        found = (_artifact(path) for path in map(self.path_of, self.steps) if (path / RECORD_NAME).is_file())
        return {one.name.removeprefix("evaluate/"): one for one in found if isinstance(one, Evaluation)}

    @property
    def changes(self) -> list[Change]:
        """What each evaluated model changed over the one that it was made from."""
        from ladle.reporting.collect import collect_changes

        paths = {name: path for name in self.steps if ((path := self.path_of(name)) / RECORD_NAME).is_file()}
        return collect_changes({name: (path, read_record(path)) for name, path in paths.items()})

    @property
    def report(self) -> Path | None:
        """The page of the run, if the recipe has one and it is built."""
        page = self.path_of("report") / "index.html" if "report" in self.steps else None
        return page if page is not None and page.is_file() else None

    def status(self, before: Sequence[StepStatus] = (), asks_slurm: bool = True) -> list[StepStatus]:
        """Return how far each step is, and who builds it now.

        Args:
            before: of an earlier look, whose finished steps are not looked at again.
            asks_slurm: say what became of Slurm jobs.
        """
        from ladle.launch.queue import SLURM_FOLDER, describe_jobs

        rows = {row.step: row for row in before if row.state == "done"}
        plan = make_plan([step for step in self.steps.values() if step.name not in rows], self.workspace)
        jobs = describe_jobs(plan, self.workspace.folder / SLURM_FOLDER) if asks_slurm else {}
        for planned in plan:
            name, path = planned.step.name, planned.path
            if planned.state is State.CACHED:
                made = Artifact(path)
                rows[name] = StepStatus(name, "done", made.seconds, made.size_bytes)
                continue
            builder = next(iter(builders_of(path)), None)
            state = "running" if builder else str(planned.state)
            left, reports = self._expected(planned.step, rows, builder), reports_of(path) if builder else ()
            rows[name] = StepStatus(name, state, None, 0, builder, jobs.get(name), left, reports)
        return [rows[name] for name in self.steps]

    def _expected(self, step: Step, rows: Mapping[str, StepStatus], builder: dict[str, Any] | None) -> float | None:
        """Return about how long a step takes, less what it has taken; None where that is not known, or past already."""
        same = [row.seconds for name, row in rows.items() if row.seconds and self.steps[name].stage is step.stage]
        whole = self._past.get(step.name) or (fmean(same) if same else 0.0)
        now = datetime.now().astimezone()
        taken = now - (datetime.fromisoformat(builder["since"]) if builder else now)
        return max(0.0, whole - taken.total_seconds()) or None

    @cached_property
    def _past(self) -> dict[str, float]:
        """What the newest build of each step's name took, whatever its settings."""
        paths = sorted(self.workspace.folder.glob(f"*/*/{RECORD_NAME}"), key=lambda path: path.stat().st_mtime)
        return {record["name"]: record["timings"]["seconds"] for record in (read_record(path.parent) for path in paths)}

    def watch(self) -> None:
        """Show how far the run is that another process builds, until it is finished.

        Raises:
            CheckFailed: nobody builds it any more, and it is not finished.
        """
        from ladle.live import follow

        follow(self)

    def _step(self, name: str) -> Step:
        if name not in self.steps:
            raise UserError(f"the recipe has no step {name!r}", f"name one of {', '.join(self.steps)}")
        return self.steps[name]


def _artifact(path: Path) -> Artifact:
    return Evaluation(path) if read_record(path)["stage"] == "evaluate" else Artifact(path)


def _tracked_run(steps: Iterable[Step], folder: Path) -> TrackedRun | None:
    """Return what trackers know of a run of these steps; None if no training of it names one."""
    trainings = [step.config.trainer.values() for step in steps if isinstance(step.config, TrainingConfig)]
    named = [one.get("report_to", DEFAULT_TRACKER) or [] for one in trainings]
    trackers = {name: None for one in named for name in ([one] if isinstance(one, str) else one) if name != "none"}
    settings = {key: value for one in reversed(trainings) for key, value in one.items()}
    fingerprint = hash_bytes("".join(step.fingerprint for step in steps).encode())
    name = settings.get("run_name") or f"{folder.name}-{fingerprint[:8]}"
    project = settings.get("project") or "ladle"
    return TrackedRun(list(trackers), project, name, str(folder.absolute())) if trackers else None


def _track(made: Artifact, run: TrackedRun) -> None:
    """Give the scores of an evaluation, or the path of a report, to the run's trackers."""
    from ladle.training.trackers import open_trackers

    scores = {name: one.accuracy for name, one in made.items()} if isinstance(made, Evaluation) else {}
    with open_trackers(run.trackers, run, made.name) as log:
        log(scores or {"path": str(made.path / "index.html")}, 0)


def _assignments(overrides: Overrides, **settings: Any) -> list[str]:
    """Return settings, then overrides, as on a command line."""
    named = settings | (dict(overrides) if isinstance(overrides, Mapping) else {})
    given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in named.items()]
    return given + ([] if isinstance(overrides, Mapping) else _listed(overrides or ()))


def _listed(given: Any) -> list[Any]:
    """Return a list of what may be one name or text alone, which Python would take for a list of its letters."""
    return [given] if isinstance(given, (str, Path)) else list(given)


def _sampling(settings: dict[str, Any]) -> SamplingConfig:
    """Return sampling settings that a program gives as keywords."""
    from ladle.generation.request import SamplingConfig

    return ConfigFile("in the call", settings).validate(SamplingConfig)


def open(
    recipe: Reference,
    overrides: Overrides = None,
    root: Reference = DEFAULT_ROOT,
    *,
    only: str | None = None,
    out: Out = None,
    section: str = "",
    processes: int | None = None,
) -> Run:
    """Read a recipe and return its run; nothing is built yet.

    Args:
        recipe: the YAML file.
        overrides: values that replace the recipe's.
        root: where runs are kept; this one's is `root/<recipe name>`.
        only: the only step that is wanted, with all it needs.
        out: the folder that `only` is built in.
        section: the section that the overrides are relative to.
        processes: those of each training on this machine; None leaves them as the recipe says.

    Raises:
        UserError: a fault of the recipe or of an override, with its key, file and line.
    """
    loaded = load_recipe(Path(recipe), _assignments(overrides), section)
    return Run(loaded if processes is None else with_processes(loaded, processes), root, only, out)


class _AnyInput(InputFinder):
    """Takes every name as it is."""

    def find(self, *_: Any, **__: Any) -> LocalFiles:
        return LocalFiles(())


def step_names(recipe: Reference) -> list[str]:
    """Return the steps of a recipe, parents first, without looking at what they read."""
    return [step.name for step in Pipeline(load_recipe(Path(recipe)), _AnyInput(Path())).in_build_order()]


def artifact(reference: Reference, root: Reference = DEFAULT_ROOT) -> Artifact:
    """Return the finished artifact that a reference names.

    Raises:
        UserError: there is none.
    """
    return _artifact(find_artifact(reference, root))


def peek(reference: Reference, rows: int = 3, split: str = "train", root: Reference = DEFAULT_ROOT) -> list[Excerpt]:
    """Return what a step's model is given, as text: packed rows, labelled completions, or the prompts of an evaluation.

    Of a step that is not built it is what its inputs show. A training shows its data, and a recipe without a step the
    first of all its steps.

    Args:
        reference: an artifact's folder, RECIPE:STEP, or RECIPE.
        rows: how many of each kind.
        split: of the data.
        root: where runs are kept.

    Raises:
        UserError: there is nothing to look at, no such split, or a step is needed that is not built.
    """
    from ladle.excerpts import Excerpt, of_artifact, of_step

    if (named := _recipe_and_step(reference)) is not None:
        return of_step(open(named[0], root=root), named[1], split, rows)
    if Path(reference).suffix not in RECIPE_SUFFIXES:
        return of_artifact(Path(reference), split, rows)
    run, found = open(reference, root=root), list[Excerpt]()
    for name in (name for name, step in run.steps.items() if step.stage.peek is not None):
        try:
            found += [replace(one, place=f"{name}: {one.place}") for one in of_step(run, name, split, 1)]
        except UserError as missing:
            found.append(Excerpt(f"{name}: {missing.problem}", []))
    return found


def find_artifact(reference: Reference, root: Reference = DEFAULT_ROOT) -> Path:
    """Return the folder that a reference names: itself, or that of a step if it is `RECIPE:STEP`."""
    named = _recipe_and_step(reference)
    return Path(reference) if named is None else open(named[0], root=root)[named[1]].path


def _recipe_and_step(reference: Reference) -> tuple[str, str] | None:
    recipe, _, step = str(reference).rpartition(":")
    is_step = not Path(reference).exists() and (Path(recipe).is_file() or recipe.endswith(RECIPE_SUFFIXES))
    return (recipe, step) if is_step else None


def find_model(reference: Reference, root: Reference = DEFAULT_ROOT) -> str:
    """Return the folder or Hub id of a model that a reference names.

    Raises:
        UserError: it is a folder without a model, or a file.
    """
    path = find_artifact(reference, root)
    if path.exists():
        model_dir(path)
    return str(path) if path.exists() else str(reference)


def mix(recipe: Reference, overrides: Overrides = None, out: Out = None, root: Reference = DEFAULT_ROOT) -> Artifact:
    """Mix a recipe's datasets by ratio into packed rows of tokens."""
    return open(recipe, overrides, root, only="mix", out=out).build("mix")


def export_arrow(mixture: Reference, root: Reference = DEFAULT_ROOT) -> Path:
    """Write a mixture in the form that `datasets.load_from_disk` opens, to a folder beside it, and return that."""
    from ladle.data.arrow import export_arrow as export

    path = find_artifact(mixture, root)
    folder = path.with_name(f"{path.name}-arrow")
    export(path, folder)
    return folder


def soup(
    members: Reference | Sequence[Reference],
    out: Out = None,
    overrides: Overrides = None,
    root: Reference = DEFAULT_ROOT,
    **settings: Any,
) -> Artifact:
    """Average models of one architecture, every tensor accounted for.

    Args:
        members: model folders, folders of checkpoints, globs, Hub ids or RECIPE:STEP, from oldest to newest.
        out: the folder that becomes the artifact.
        overrides: settings of a recipe's `soup:` section.
        root: where runs are kept.
        settings: the same as keywords, such as `method="ema", ema_alpha=0.2`.
    """
    if not members:
        raise UserError("no members are named", "ladle soup MEMBER MEMBER… --out DIR, or name a recipe")
    given = _assignments(overrides, **settings)
    for override in given:
        if override.partition("=")[0] in ("members", "include_base"):
            raise UserError(f"{override} concerns a recipe", "name the members alone, or a recipe")
    section = {"members": [str(find_artifact(member, root)) for member in _listed(members)]}
    return Run(make_recipe({"soup": section}, given, "soup"), root, "soup", out).build("soup")


def evaluate(
    model: Reference,
    benchmarks: Reference | Sequence[Reference] = ("gsm8k", "math500"),
    data: Reference | None = None,
    limit: int | None = None,
    out: Out = None,
    overrides: Overrides = None,
    root: Reference = DEFAULT_ROOT,
    revision: str | None = None,
    **settings: Any,
) -> Evaluation:
    """Score a model on benchmarks.

    Args:
        model: a folder, a Hub id, or RECIPE:STEP.
        benchmarks: names, or jsonl files of questions and answers.
        data: folder with `<benchmark>/test.jsonl`; None fetches the pinned datasets of the Hub.
        limit: items of each benchmark, from the first.
        out: the folder that becomes the artifact.
        overrides: settings of a recipe's `evaluate:` section, such as `{"sampling.max_new_tokens": 64}`.
        root: where runs are kept.
        revision: branch, tag or commit of a Hub model.
        settings: the same as keywords.
    """
    choice = {"model": find_model(model, root), "name": "model", "revision": revision}
    named = [str(one) if isinstance(one, Path) else one for one in _listed(benchmarks)]
    section = {"models": [choice], "benchmarks": named, "data": str(data) if data else None, "limit": limit}
    recipe = make_recipe({"evaluate": section}, _assignments(overrides, **settings), "evaluate")
    scores = Run(recipe, root, "evaluate/model", out).build("evaluate/model")
    assert isinstance(scores, Evaluation)
    return scores


def fetch(
    model: str | None = None,
    dataset: str | None = None,
    init: Reference | None = None,
    revision: str | None = None,
    out: Out = None,
    overrides: Overrides = None,
    root: Reference = DEFAULT_ROOT,
) -> Artifact:
    """Bring a model or a dataset to disk, or make a model with random weights.

    Args:
        model: a Hub id, or a folder.
        dataset: a dataset of the Hub: `org/name[:subset]`.
        init: a YAML file with architecture and tokenizer.
        revision: branch, tag or commit.
        out: the folder that becomes the artifact.
        overrides: more settings, such as `{"dtype": "bfloat16"}`.
        root: where runs are kept.
    """
    step, section, given = "base", "base", _assignments(overrides)
    match model, dataset, init:
        case str(), None, None:
            source: dict[str, Any] = {"base": {"model": model, "revision": revision}}
        case None, str(), None:
            step, section = "datasets/dataset", "datasets.dataset"
            source = {"datasets": {"dataset": {"dataset": dataset, "revision": revision}}}
        case None, None, str() | Path():
            file = ConfigFile.read(Path(init))
            file.override(given)
            source, given = {"base": {"init": file.validate(InitConfig)}}, []
        case _:
            fix = "ladle fetch MODEL, ladle fetch --dataset NAME, or ladle fetch --init FILE"
            raise UserError("name one thing to fetch", fix)
    return Run(make_recipe(source, given, section), root, step, out).build(step)


def generate(
    model: Reference,
    prompts: str | Sequence[str],
    root: Reference = DEFAULT_ROOT,
    dtype: str | None = None,
    **sampling: Any,
) -> list[list[Sample]]:
    """Complete prompts as they are, and return each one's samples in order.

    Args:
        model: a folder, or RECIPE:STEP.
        prompts: texts to complete, without a chat template.
        root: where runs are kept.
        dtype: floating-point type to run the weights in; unset: bfloat16 on GPUs, float32 on CPUs.
        sampling: settings of `sampling:`, such as `max_new_tokens=64, temperature=0.6, samples=4`.
    """
    from ladle.generation.complete import make_generator, positions_of
    from ladle.generation.request import make_requests
    from ladle.models.chat import prompt_ids
    from ladle.models.config import choose_dtype
    from ladle.models.tokenizer import load_fast_tokenizer

    config = _sampling(sampling)
    folder = model_dir(Path(find_model(model, root)))
    tokenizer = load_fast_tokenizer(folder)
    starts, room = [prompt_ids(tokenizer, prompt) for prompt in _listed(prompts)], positions_of(folder)
    requests = [make_requests(config, "prompts", at, ids, (), room) for at, ids in enumerate(starts)]
    generator = make_generator(config, folder, tokenizer, choose_dtype(dtype))
    with progress(sum(one.max_new_tokens for own in requests for one in own), "generating", "tokens") as bar:
        generator.report = bar.advance
        done = {sample.id: sample for sample in generator.generate(one for own in requests for one in own)}
    return [[done[request.id] for request in own] for own in requests]


def chat(
    model: Reference,
    style: ChatStyle | None = None,
    system: str | None = None,
    root: Reference = DEFAULT_ROOT,
    **sampling: Any,
) -> Chat:
    """Load a model and return a conversation with it: `answer(message, show)` gives the text to `show` as it is made.

    Args:
        model: a folder, RECIPE:STEP, or a Hub id, which is fetched.
        style: how messages are put, `plain` being as they are; None is the chat template, and plain without one.
        system: text of the system turn of a chat template.
        root: where runs are kept.
        sampling: as in `generate`.
    """
    from ladle.conversation import Chat
    from ladle.models.config import choose_dtype

    config, place = _sampling(sampling), find_model(model, root)
    folder = model_dir(Path(place) if Path(place).exists() else fetch(place, root=root).path)
    return Chat(folder, config, choose_dtype(None), style, system)


def grade(gold: str, answer: str, completion: bool = False) -> Grade:
    """Grade an answer, bare or at the end of a sentence; with `completion`, the answer that a whole completion gives.

    The result has `verdict` (correct, wrong, unparsed, timeout), `reason` and `seconds`.
    """
    for text in (gold, answer):
        if not isinstance(text, str):
            raise UserError(f"{text!r} ({type(text).__name__}) is not a text", f"write it as one: {str(text)!r}")
    from ladle.grading.extract import bare_answer
    from ladle.grading.grade import Grader
    from ladle.grading.verdict import Pair

    with Grader() as grader:
        if completion:
            return next(iter(grader.grade_completions([Pair(gold, answer)])))
        return grader.grade(Pair(gold, bare_answer(answer)))


def grade_file(pairs: Reference, out: Reference) -> dict[str, int]:
    """Grade a file of rows with `gold` and `answer`; write them with verdicts, and return how many got each."""
    from ladle.evaluation.rescore import grade_file as grade_all

    return grade_all(Path(pairs), Path(out))


def rescore(results: Reference, data: Reference | None = None, root: Reference = DEFAULT_ROOT) -> list[Rescored]:
    """Grade stored completions again, ours or upstream's, and return each file with every verdict that changed."""
    from ladle.evaluation.rescore import rescore as grade_again

    return grade_again(find_artifact(results, root), Path(data) if data else None)


def compare(first: Reference, second: Reference, root: Reference = DEFAULT_ROOT) -> Comparison:
    """Compare two evaluations item by item: difference with interval, test, and the smallest detectable difference."""
    from ladle.evaluation.compare import compare_runs

    return compare_runs(find_artifact(first, root), find_artifact(second, root))


@dataclass(frozen=True)
class Difference:
    """What two records say differently: a dotted place (`config.seed`, `environment.cpu`), and both values."""

    place: str
    first: Any
    second: Any


def compare_records(
    first: Reference, second: Reference, root: Reference = DEFAULT_ROOT
) -> tuple[bool, list[Difference]]:
    """Return whether two artifacts have equal results, and what differs in settings, inputs, machine and files."""
    from ladle.artifacts.plan import compare_records as compare_folders

    is_equal, rows = compare_folders(find_artifact(first, root), find_artifact(second, root))
    return is_equal, [Difference(*row) for row in rows]


def verify(reference: Reference, recompute: bool = False, root: Reference = DEFAULT_ROOT) -> list[str]:
    """Re-hash an artifact and all it was made from; return a line for each changed, missing or extra file.

    With `recompute`, a soup's members are averaged again and every tensor is compared.
    """
    path = find_artifact(reference, root)
    faults = list(find_faults(path))
    if recompute and not any(fault.startswith("missing") for fault in faults):
        from ladle.soups.make import recompute as find_different

        different = find_different(path, recorded_paths(path, "members"))
        faults += [f"not the mean of the members: {name} in {path}" for name in different]
    return faults


def push(
    reference: Reference,
    repo_id: str,
    results: Sequence[Reference] = (),
    private: bool = False,
    message: str | None = None,
    root: Reference = DEFAULT_ROOT,
) -> str:
    """Put a model, a dataset or an evaluation on the Hub, with a card, in one commit; return the commit's URL."""
    from ladle.publish import push as upload

    return upload(
        find_artifact(reference, root), repo_id, [find_artifact(one, root) for one in results], private, message
    )


def launch_on_slurm(
    recipe: Reference,
    overrides: Overrides = None,
    profile: Reference | None = None,
    dry_run: bool = False,
    root: Reference = DEFAULT_ROOT,
) -> Launched:
    """Submit a Slurm job for each step of a recipe that is neither finished nor queued, each after those it reads.

    Args:
        recipe: the YAML file.
        overrides: values that replace the recipe's.
        profile: what the cluster's jobs request, such as recipes/slurm/gpu.yaml.
        dry_run: only make the scripts.
        root: where runs are kept, on a file system that all nodes share.
    """
    from ladle.launch.jobs import Call, load_profile
    from ladle.launch.queue import commit_if_known, launch

    settings, given = load_profile(Path(profile) if profile else None), _assignments(overrides)
    resolve = commit_if_known if dry_run else resolve_commit
    run = Run(load_recipe(Path(recipe), given), root, resolve=resolve)
    call = Call(str(recipe), tuple(given), str(root), str(Path.cwd()), sys.executable)
    return launch(run.plan(), run.workspace, call, settings, dry_run)


def num_gpus() -> int:
    """Return how many GPUs this process may use."""
    from ladle.preflight.machine import gpus_of_machine

    return len(gpus_of_machine())


def doctor(recipe: Reference, overrides: Overrides = None, root: Reference = DEFAULT_ROOT) -> list[Finding]:
    """Return everything that can be known before a run to stop or spoil it, with the fixes."""
    from ladle.preflight.diagnose import diagnose
    from ladle.preflight.machine import look_at_machine

    return diagnose(Path(recipe), _assignments(overrides), Path(root), look_at_machine())


def rehearse(
    recipe: Reference, overrides: Overrides = None, root: Reference = DEFAULT_ROOT, price_per_gpu_hour: float = 0.0
) -> Rehearsal:
    """Run every stage at its true shape in tiny amounts, kill and resume it, and estimate what the full run takes."""
    from ladle.preflight.rehearse import rehearse as run_small

    return run_small(Path(recipe), _assignments(overrides), Path(root), price_per_gpu_hour)
