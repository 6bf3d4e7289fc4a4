"""Putting an artifact on the Hub in the form that others load: a model, a dataset as parquet, an evaluation's files.

The artifact is verified first, staged with its card in a temporary folder (by links where the disk allows), and goes
up in one commit. The card (README.md) says what it is, how it was made and how it scored, from records: the artifact's
own, those it was made from, and those of its evaluations. Licence and languages are what the cards of its sources say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from ladle.artifacts.files import link_or_copy, list_files
from ladle.artifacts.record import RECORD_NAME, describe_files, read_record
from ladle.errors import CheckFailed, UserError
from ladle.hub import card_of, is_repo_id, read_card, upload
from ladle.log import get_logger

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

logger = get_logger(__name__)

REWRITTEN = ("mix", "prefer")
"""Stages whose data goes up as parquet, not file by file."""
MODEL_ROLES = ("model", "members", "extends")


def push(artifact: Path, repo_id: str, evaluations: list[Path], private: bool, message: str | None) -> str:
    """Upload an artifact and return the commit's URL.

    Args:
        artifact: a folder that a stage made.
        repo_id: `org/name`; made where there is none.
        evaluations: evaluate artifacts whose scores a model's card shows.
        private: make a new repository private.
        message: the commit's message; None gives the artifact's name and digest.

    Raises:
        UserError: nothing there that can be pushed, or no right to write.
        CheckFailed: the artifact is not what was recorded.
    """
    if not is_repo_id(repo_id):
        raise UserError(f"{repo_id!r} is not a repository", "name it org/name")
    record = read_record(artifact)
    if record["stage"] == "report":
        raise UserError(f"{artifact} is a report", "push a model, a dataset or an evaluation")
    if describe_files(artifact) != record["files"]:
        raise CheckFailed(f"{artifact} is not what was recorded: `ladle verify {artifact}` names each file")
    for place in evaluations:
        if read_record(place)["stage"] != "evaluate":
            raise UserError(f"{place} is not an evaluation", "name folders of evaluate steps with --results")
    has_model = any((place / "config.json").is_file() for place in (artifact, artifact / "model"))
    kind = "model" if has_model else "dataset"  # an evaluation is a dataset
    with tempfile.TemporaryDirectory(dir=artifact.resolve().parent, prefix=".push-") as temporary:
        staged = Path(temporary)
        configs = _stage_files(artifact, record, staged)
        if not (staged / "README.md").is_file():
            card = make_card(repo_id, kind, artifact, staged, evaluations, configs)
            (staged / "README.md").write_text(card, encoding="utf-8")
        link_or_copy(artifact / RECORD_NAME, staged / RECORD_NAME)
        return upload(kind, repo_id, staged, message or f"{record['name']} {record['digest'][:12]}", private)


def _stage_files(artifact: Path, record: dict[str, Any], staged: Path) -> list[dict[str, Any]]:
    """Put what is pushed into `staged` and return the `configs` of a dataset's card: which files make up a split."""
    if record["stage"] == "prefer":
        return _write_parquet(artifact / "preference", staged / "data")
    if record["stage"] == "mix":
        from ladle.data.arrow import export_arrow

        with tempfile.TemporaryDirectory(dir=staged.parent, prefix=".arrow-") as temporary:
            export_arrow(artifact, Path(temporary) / "arrow")
            return _write_parquet(Path(temporary) / "arrow", staged / "data")
    folder = artifact / "model" if (artifact / "model").is_dir() else artifact
    for path in list_files(folder):
        if path.name != RECORD_NAME:
            link_or_copy(path, staged / path.relative_to(folder))
    names = record["metrics"] if record["stage"] == "evaluate" else ()
    return [{"config_name": name, "data_files": f"{name}/*_result.jsonl"} for name in names]


def _write_parquet(saved: Path, out: Path) -> list[dict[str, Any]]:
    """Write a dataset that was saved to disk as parquet, a file for each Arrow file; return its card's `configs`."""
    from datasets import load_from_disk

    loaded = load_from_disk(saved)
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    for name, split in splits.items():
        count = max(1, len(split.cache_files))
        for index in range(count):
            part = split.shard(count, index, contiguous=True)
            part.to_parquet(out / f"{name}-{index:05d}-of-{count:05d}.parquet")
    files = [{"split": str(name), "path": f"data/{name}-*.parquet"} for name in splits]
    return [{"config_name": "default", "data_files": files}]


def make_card(
    repo_id: str, kind: str, folder: Path, staged: Path, evaluations: list[Path], configs: list[dict[str, Any]]
) -> str:
    """Return the README.md of an artifact, `card.md` filled in.

    Args:
        repo_id: where it goes.
        kind: `model` or `dataset`.
        folder: the artifact.
        staged: the files that go up.
        evaluations: artifacts of the evaluate stage whose scores the card shows.
        configs: of a dataset, which files make up a split.
    """
    from huggingface_hub import DatasetCardData, ModelCardData, RepoCard

    from ladle.models.tokenizer import load_fast_tokenizer

    chain, scored = _lineage(folder), [read_record(place) for place in evaluations]
    record, sources = chain[-1], _sources(chain)
    on_hub = [source for source in sources if source.commit]
    models, datasets = ([one.name for one in on_hub if one.kind == kind] or None for kind in ("model", "dataset"))
    shared = {"language": _stated(sources, "language"), "tags": ["ladle"]}
    if kind == "model":
        results = [result for one in scored for result in _eval_results(one)]
        terms = [source.terms for source in sources if source.kind == "model"]
        agreed = terms[0] if terms and terms.count(terms[0]) == len(terms) else {}
        scores = {"model_name": record["name"], "eval_results": results} if results else {}
        loaded_by = {"library_name": "transformers", "pipeline_tag": "text-generation"}
        data = ModelCardData(base_model=models, datasets=datasets, **shared, **loaded_by, **agreed, **scores)
    else:
        known = all(source.terms for source in sources)
        licences = _stated(sources, "license") if known else None
        data = DatasetCardData(source_datasets=datasets, models=models, license=licences, configs=configs, **shared)
    settings = {one["name"]: one["identity"]["config"] for one in chain}
    card = RepoCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.md")),
        repo_id=repo_id,
        kind=kind,
        record=record,
        chain=chain,
        sources=sources,
        evaluations=scored,
        configs=configs,
        is_chat=kind == "model" and load_fast_tokenizer(staged).chat_template is not None,
        warnings=list(dict.fromkeys(text for one in chain for text in one.get("warnings", []))),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120),
        is_copied=record["stage"] not in REWRITTEN,
    )
    return str(card)


def _eval_results(record: dict[str, Any]) -> Iterator[EvalResult]:
    """Yield an evaluation's accuracies and pass@k as the Hub's structured results."""
    from huggingface_hub import EvalResult

    splits = {choice["name"]: choice["split"] for choice in record["config"]["benchmarks"]}
    for benchmark, score in record["metrics"].items():
        read = record["inputs"][f"benchmark:{benchmark}"][0]
        interval = f"95 % interval {score['low']:.4f} to {score['high']:.4f}, {score['n']} items"
        values = {f"accuracy ({interval})": score["accuracy"]}
        values |= {f"pass@{k}": share for k, share in score["pass_at_k"].items()}
        for name, value in values.items():
            yield EvalResult(
                task_type="text-generation",
                dataset_type=read.get("repo_id", benchmark),
                dataset_name=benchmark,
                dataset_split=splits[benchmark],
                dataset_revision=read.get("commit"),
                metric_type=name.split(" ")[0],
                metric_name=name,
                metric_value=value,
            )


class Source(NamedTuple):
    """A model, tokenizer or dataset that something was made from: a repository of the Hub, or a folder with a card."""

    kind: str
    name: str
    commit: str | None
    card: dict[str, Any]
    """The header of its card."""

    @property
    def terms(self) -> dict[str, str]:
        """Its licence: id, and name and link where the id alone does not say; empty where the card states none."""
        return {key: self.card[key] for key in ("license", "license_name", "license_link") if self.card.get(key)}

    def stated(self, key: str) -> list[str]:
        """Return what the card states under a key, which may hold one value or several."""
        value = self.card.get(key) or []
        return [value] if isinstance(value, str) else list(value)


def _sources(chain: list[dict[str, Any]]) -> list[Source]:
    """Return what a chain of artifacts starts from."""
    found: dict[tuple[str, str], Source] = {}
    roles = [(role, item) for record in chain for role, items in record["inputs"].items() for item in items]
    for role, item in roles:
        kind = "tokenizer" if role == "tokenizer" else "model" if role in MODEL_ROLES else "dataset"
        if role == "benchmarks":  # which the data was checked against
            continue
        if "hub" in item and (key := (kind, item["repo_id"])) not in found:
            found[key] = Source(*key, item["commit"], _read_card(item))
        for folder in map(Path, item.get("paths", ())):
            if (folder / "README.md").is_file():
                found[kind, folder.name] = Source(kind, folder.name, None, read_card(folder / "README.md"))
    return list(found.values())


def _read_card(item: dict[str, Any]) -> dict[str, Any]:
    try:
        return card_of(item["hub"], item["repo_id"], item["commit"])
    except UserError as fault:
        logger.warning("licence and language of %s are left out: %s", item["repo_id"], fault.problem)
        return {}


def _stated(sources: list[Source], key: str) -> list[str] | None:
    stated = {value for source in sources if source.kind != "tokenizer" for value in source.stated(key)}
    return sorted(stated) or None


def _lineage(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the artifact and of all it was made from, parents first, as far as they are on disk."""
    found: dict[Path, dict[str, Any]] = {}

    def visit(place: Path) -> None:
        place = place.resolve()
        if place in found or not (place / RECORD_NAME).is_file():
            return
        record = read_record(place)
        for item in (item for items in record["inputs"].values() for item in items if "artifact" in item):
            visit(place.parent / item["artifact"])
        found[place] = record

    visit(folder)
    return list(found.values())
