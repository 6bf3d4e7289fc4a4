"""Putting an artifact on the Hub in the form that others load: a model, a dataset as parquet, an evaluation's files.

The artifact is verified first, staged with its card in a temporary folder (by links where the disk allows), and goes
up in one commit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ladle.artifacts.files import link_or_copy, list_files
from ladle.artifacts.record import RECORD_NAME, describe_files, read_record
from ladle.errors import CheckFailed, UserError
from ladle.hub import is_repo_id, upload
from ladle.reporting.card import make_card

CARD = "README.md"


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
    is_model = any((place / "config.json").is_file() for place in (artifact, artifact / "model"))
    kind = "model" if is_model else "dataset"  # an evaluation is a dataset
    with tempfile.TemporaryDirectory(dir=artifact.resolve().parent, prefix=".push-") as temporary:
        staged = Path(temporary)
        metadata = _stage_files(artifact, record, staged)
        if not (staged / CARD).is_file():
            (staged / CARD).write_text(make_card(artifact, kind, evaluations, metadata), encoding="utf-8")
        link_or_copy(artifact / RECORD_NAME, staged / RECORD_NAME)
        return upload(kind, repo_id, staged, message or f"{record['name']} {record['digest'][:12]}", private)


def _stage_files(artifact: Path, record: dict[str, Any], staged: Path) -> dict[str, Any]:
    """Put what is pushed into `staged` and return what the card's header says about it."""
    if record["stage"] in ("mix", "prefer"):
        splits = _write_mixture(artifact, staged) if record["stage"] == "mix" else _write_preference(artifact, staged)
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
        return {"configs": [{"config_name": "default", "data_files": files}]}
    folder = artifact / "model" if (artifact / "model").is_dir() else artifact
    for path in list_files(folder):
        if path.name != RECORD_NAME:
            link_or_copy(path, staged / path.relative_to(folder))
    return {}


def _write_mixture(artifact: Path, staged: Path) -> list[str]:
    """Write a mixture's rows as parquet, a file for each of its Arrow files, and return the names of its splits."""
    from datasets import load_from_disk

    from ladle.data.arrow import export_arrow

    with tempfile.TemporaryDirectory(dir=staged.parent, prefix=".arrow-") as temporary:
        export_arrow(artifact, Path(temporary) / "arrow")
        loaded = load_from_disk(Path(temporary) / "arrow")
        splits = loaded if isinstance(loaded, dict) else {"train": loaded}
        for name, split in splits.items():
            count = max(1, len(split.cache_files))
            for index in range(count):
                part = split.shard(count, index, contiguous=True)
                part.to_parquet(staged / "data" / f"{name}-{index:05d}-of-{count:05d}.parquet")
        return [str(name) for name in splits]


def _write_preference(artifact: Path, staged: Path) -> list[str]:
    """Write each split of preference data as one parquet file, and return the splits' names."""
    from datasets import DatasetDict, load_from_disk

    splits = load_from_disk(artifact / "preference")
    assert isinstance(splits, DatasetDict)  # as the stage writes it
    for name, split in splits.items():
        split.to_parquet(staged / "data" / f"{name}-00000-of-00001.parquet")
    return [str(name) for name in splits]
