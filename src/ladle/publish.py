"""Putting an artifact on the Hub in the form that others load: a model, a dataset as parquet, an evaluation's files.

The artifact is verified first, staged with its card in a temporary folder (by links where the disk allows), and goes
up in one commit. The card (README.md) says what it is, how it was made and how it scored, from records alone: the
artifact's own, those it was made from, and those of its evaluations.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ladle.artifacts.files import link_or_copy, list_files
from ladle.artifacts.record import RECORD_NAME, describe_files, read_record
from ladle.errors import CheckFailed, UserError
from ladle.hub import is_repo_id, upload


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
        metadata = _stage_files(artifact, record["stage"], staged)
        if not (staged / "README.md").is_file():
            (staged / "README.md").write_text(make_card(artifact, kind, evaluations, metadata), encoding="utf-8")
        link_or_copy(artifact / RECORD_NAME, staged / RECORD_NAME)
        return upload(kind, repo_id, staged, message or f"{record['name']} {record['digest'][:12]}", private)


def _stage_files(artifact: Path, stage: str, staged: Path) -> dict[str, Any]:
    """Put what is pushed into `staged` and return what the card's header says about it."""
    if stage == "prefer":
        return _write_parquet(artifact / "preference", staged / "data")
    if stage == "mix":
        from ladle.data.arrow import export_arrow

        with tempfile.TemporaryDirectory(dir=staged.parent, prefix=".arrow-") as temporary:
            export_arrow(artifact, Path(temporary) / "arrow")
            return _write_parquet(Path(temporary) / "arrow", staged / "data")
    folder = artifact / "model" if (artifact / "model").is_dir() else artifact
    for path in list_files(folder):
        if path.name != RECORD_NAME:
            link_or_copy(path, staged / path.relative_to(folder))
    return {}


def _write_parquet(saved: Path, out: Path) -> dict[str, Any]:
    """Write a dataset that was saved to disk as parquet, a file for each Arrow file; return the header's `configs`."""
    from datasets import load_from_disk

    loaded = load_from_disk(saved)
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    for name, split in splits.items():
        count = max(1, len(split.cache_files))
        for index in range(count):
            part = split.shard(count, index, contiguous=True)
            part.to_parquet(out / f"{name}-{index:05d}-of-{count:05d}.parquet")
    files = [{"split": str(name), "path": f"data/{name}-*.parquet"} for name in splits]
    return {"configs": [{"config_name": "default", "data_files": files}]}


def make_card(folder: Path, kind: str, evaluations: list[Path], metadata: dict[str, Any]) -> str:
    """Return the README.md of an artifact, `card.md` filled in.

    Args:
        folder: the artifact.
        kind: `model` or `dataset`.
        evaluations: artifacts of the evaluate stage whose scores the card shows.
        metadata: more of the card's YAML header, such as `configs` of a dataset.
    """
    from huggingface_hub import CardData, RepoCard

    chain = _lineage(folder)
    inputs = [item for one in chain for items in one["inputs"].values() for item in items]
    roots = {hub: sorted({one["repo_id"] for one in inputs if one.get("hub") == hub}) for hub in ("model", "dataset")}
    header = {"tags": ["ladle"], "datasets": roots["dataset"] or None} | metadata
    if kind == "model":
        header |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    header["base_model" if kind == "model" else "models"] = roots["model"] or None
    card = RepoCard.from_template(
        CardData(**header),
        template_path=str(Path(__file__).with_name("card.md")),
        record=chain[-1],
        chain=chain,
        scores=[score for place in evaluations for score in read_record(place)["metrics"].items()],
        settings=json.dumps(chain[-1]["identity"]["config"], indent=2, sort_keys=True, ensure_ascii=False),
    )
    return str(card)


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
