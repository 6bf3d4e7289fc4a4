"""Steps made from a command line, not a recipe: a soup of named members, a model to evaluate, a thing to fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.artifacts.file_hashes import FileHashes
from ladle.artifacts.local import find_local, hash_local, leave_unread
from ladle.artifacts.record import RECORD_NAME
from ladle.artifacts.step import HubRepository, LocalFiles, Step, StepInput, StepOutput
from ladle.config_file import ConfigFile
from ladle.data.questions.config import FetchDatasetConfig
from ladle.errors import UserError
from ladle.evaluation.config import EvaluateConfig, EvaluateModelConfig
from ladle.hub import is_repo_id, resolve_commit
from ladle.models.config import FetchModelConfig, InitConfig, InitModelConfig
from ladle.soup.config import SoupConfig
from ladle.soup.members import TRAINING_STATE, find_members

COMMAND_LINE = "command line"


def soup_step(members: list[str], overrides: list[str], root: Path, out: Path | None) -> Step:
    """Return the step that averages the members, in order; each is a folder, a glob of folders or a Hub id.

    Members are hashed while they are averaged, unless the result's place follows from the hashes, or something stands
    there already.

    Raises:
        UserError: fewer than one member, one that does not exist, or a setting that concerns recipes.
    """
    if not members:
        raise UserError("no members are named", "ladle soup MEMBER MEMBER… --out DIR, or --config RECIPE")
    for override in overrides:
        if override.partition("=")[0] in ("members", "include_base"):
            raise UserError(f"{override} concerns a recipe", "name the members alone, or a recipe with --config")
    hashes = _hashes(root)
    is_new = out is not None and not (out / RECORD_NAME).is_file()
    describe = leave_unread if is_new else hash_local
    inputs: list[StepInput] = []
    for member in members:
        found = find_members(member)
        inputs += [describe((path,), hashes, TRAINING_STATE) for path in found] or [
            _local_or_hub("model", member, None, hashes)
        ]
    config = _options(overrides, {"members": members}).validate(SoupConfig)
    return Step("soup", "soup", config, {"members": tuple(inputs)})


def evaluate_step(
    model: str,
    benchmarks: list[str],
    data: Path | None,
    limit: int | None,
    overrides: list[str],
    root: Path,
    revision: str | None = None,
) -> Step:
    """Return the step that scores one model, a folder or a Hub id, on benchmarks by name or file.

    Raises:
        UserError: an unknown benchmark, or a model or data file that does not exist.
    """
    hashes = _hashes(root)
    given = {
        "models": [{"model": model, "name": "model", "revision": revision}],
        "benchmarks": benchmarks,
        "limit": limit,
    }
    config = _options(overrides, {key: value for key, value in given.items() if value is not None}).validate(
        EvaluateConfig
    )
    choice = config.models[0]
    inputs: dict[str, tuple[StepInput, ...]] = {"model": (_imported(choice.model, choice.revision, hashes),)}
    for benchmark in config.benchmarks:
        item: StepInput
        if benchmark.dataset is not None:
            item = _local_or_hub("dataset", benchmark.dataset, None, hashes)
        elif data is not None:
            item = hash_local(_existing(str(data / benchmark.name / "test.jsonl")), hashes)
        else:
            source = benchmark.hub_source()
            item = HubRepository("dataset", source.id, source.revision, file=source.file)
        inputs[f"benchmark:{benchmark.name}"] = (item,)
    one_model = EvaluateModelConfig.of(config, choice)
    if one_model.examples is not None:
        inputs["examples"] = (_local_or_hub("dataset", one_model.examples.dataset, None, hashes),)
    return Step("evaluate/model", "evaluate", one_model, inputs, volatile=("*_metrics.json", "final_result.json"))


def _imported(model: str, revision: str | None, hashes: FileHashes) -> StepInput:
    """Return a folder as it is, and a model of the Hub as the step that imports it."""
    found = _local_or_hub("model", model, revision, hashes)
    return found if isinstance(found, LocalFiles) else StepOutput(_import_step(found))


def _import_step(source: LocalFiles | HubRepository, config: FetchModelConfig | None = None) -> Step:
    return Step("model", "fetch", config or FetchModelConfig(), {"model": (source,)})


def fetch_step(
    model: str | None, dataset: str | None, init: Path | None, revision: str | None, overrides: list[str], root: Path
) -> Step:
    """Return the step that brings one model or dataset, or makes a fresh model.

    Raises:
        UserError: not exactly one of the three is named.
    """
    if sum(item is not None for item in (model, dataset, init)) != 1:
        raise UserError(
            "name one thing to fetch", "ladle fetch MODEL, ladle fetch --dataset NAME, or ladle fetch --init FILE"
        )
    hashes = _hashes(root)
    if model is not None:
        config = _options(overrides, {}).validate(FetchModelConfig)
        return _import_step(_local_or_hub("model", model, revision, hashes), config)
    if dataset is not None:
        repo_id, _, subset = dataset.partition(":")
        config = _options(overrides, {"dataset": repo_id, "subset": subset or None}).validate(FetchDatasetConfig)
        return Step("dataset", "fetch", config, {"dataset": (_local_or_hub("dataset", repo_id, revision, hashes),)})
    assert init is not None  # one of the three is named
    file = ConfigFile.read(init)
    file.override(overrides)
    return _init_step(file.validate(InitConfig), hashes)


def _init_step(config: InitConfig, hashes: FileHashes) -> Step:
    if not isinstance(config.tokenizer, str):
        raise UserError("--init takes the folder of a tokenizer", "set `tokenizer: DIR` in the file")
    step_config = InitModelConfig(seed=config.seed, architecture=config.architecture, dtype=config.dtype)
    return Step("model", "fetch", step_config, {"tokenizer": (_local_or_hub("model", config.tokenizer, None, hashes),)})


def _options(overrides: list[str], values: dict[str, Any]) -> ConfigFile:
    file = ConfigFile(COMMAND_LINE, dict(values), {})
    file.override(overrides)
    return file


def _hashes(root: Path) -> FileHashes:
    return FileHashes(root / ".file-hashes.json")


def _existing(reference: str) -> tuple[Path, ...]:
    found = find_local(reference)
    if not found:
        raise UserError(f"there is nothing at {reference}", "name an existing path or glob")
    return found


def _local_or_hub(kind: str, reference: str, revision: str | None, hashes: FileHashes) -> LocalFiles | HubRepository:
    if found := find_local(reference):
        return hash_local(found, hashes)
    if is_repo_id(reference):
        return HubRepository(kind, reference, resolve_commit(kind, reference, revision))
    raise UserError(f"there is no {kind} at {reference}", "name an existing folder, or a Hub id org/name")
