"""Finds the data files of one split of a source: single files, folders, `save_to_disk` folders, downloaded Hub
datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ladle.errors import UserError

Kind = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"]

SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".json.zst": "jsonl.zst",
    ".parquet": "parquet",
}
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that stand for a split in a file's path, as in `datasets.data_files`."""


@dataclass(frozen=True)
class DataFile:
    """One file of a source, or one `save_to_disk` folder (kind `arrow`)."""

    path: Path
    kind: Kind


def find_data_files(paths: Sequence[Path], split: str, subset: str | None) -> list[DataFile]:
    """Return the files that hold a split, in the order that defines document numbers: paths as given, sorted below a
    folder.

    Args:
        paths: files, which are taken whole, and folders, which are searched for the split.
        split: name of the split.
        subset: configuration of the dataset, where it has several.

    Raises:
        UserError: a path is missing or of an unknown format, or the folder does not have the split.
    """
    return [file for path in paths for file in _find_in(path, split, subset)]


def _find_in(path: Path, split: str, subset: str | None) -> list[DataFile]:
    if not path.exists():
        raise UserError(f"there is no file or folder {path}", "check the source's `dataset`")
    if path.is_file():
        return [DataFile(path, _kind_of(path))]
    if (path / "dataset_dict.json").is_file():
        return [DataFile(_split_folder(path, split), "arrow")]
    if (path / "state.json").is_file():
        return [DataFile(path, "arrow")]
    if _has_declared_files(path):
        return _declared_files(path, split, subset)
    return _matching_files(path, split, subset)


def _kind_of(path: Path) -> Kind:
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.endswith(suffix):
            return SUFFIXES[suffix]
    raise UserError(
        f"{path} has a format that cannot be read",
        f"give files ending in {', '.join(SUFFIXES)}, or a save_to_disk folder",
    )


def _split_folder(path: Path, split: str) -> Path:
    splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    if split not in splits:
        raise _no_such_split(path, split, splits)
    return path / split


def _has_declared_files(folder: Path) -> bool:
    card = folder / "README.md"
    return card.is_file() and re.search(r"^configs:", card.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _declared_files(folder: Path, split: str, subset: str | None) -> list[DataFile]:
    """Return the files that the dataset card's `configs:` names for the split."""
    from datasets import load_dataset_builder

    try:
        declared = load_dataset_builder(str(folder), name=subset).config.data_files or {}
    except ValueError as error:
        raise UserError(
            f"{folder}: {str(error).splitlines()[0]}", "set the source's `subset` to one that its card lists"
        ) from error
    if split not in declared:
        raise _no_such_split(folder, split, map(str, declared))
    return [DataFile(Path(name), _kind_of(Path(name))) for name in declared[split]]


def _matching_files(folder: Path, split: str, subset: str | None) -> list[DataFile]:
    """Return the files whose path names the split; in a folder where none names any split, all files are `train`."""
    found = [file for file in sorted(folder.rglob("*")) if file.is_file() and _is_data(file, folder)]
    if not found:
        raise UserError(f"{folder} holds no data files", f"it needs files ending in {', '.join(SUFFIXES)}")
    found = _of_subset(found, folder, subset)
    by_split: dict[str, list[Path]] = {}
    for file in found:
        by_split.setdefault(split_of(file.relative_to(folder), split), []).append(file)
    if list(by_split) == [""]:
        by_split = {"train": by_split[""]}
    if split not in by_split:
        raise _no_such_split(folder, split, filter(None, by_split))
    return [DataFile(file, _kind_of(file)) for file in by_split[split]]


def _is_data(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.name.endswith(tuple(SUFFIXES))


def _of_subset(files: list[Path], folder: Path, subset: str | None) -> list[Path]:
    if subset is None:
        return files
    chosen = [file for file in files if _names(file.relative_to(folder), subset)]
    if not chosen:
        tops = sorted({file.relative_to(folder).parts[0] for file in files})
        raise UserError(
            f"{folder} has no files of subset {subset!r} (it holds {', '.join(tops[:12])})",
            "correct the source's `subset`",
        )
    return chosen


def split_of(relative: Path, wanted: str) -> str:
    """Return the split that a file's path names, the wanted one where it could be that; empty where it names none."""
    if _names(relative, wanted):
        return wanted
    for split, words in SPLIT_WORDS.items():
        if any(_names(relative, word) for word in words):
            return split
    return ""


def _names(relative: Path, word: str) -> bool:
    """Tell whether a word stands alone in a path: between separators, digits or its ends."""
    return re.search(rf"(?:^|[-._/0-9]){re.escape(word)}(?:[-._/0-9]|$)", relative.as_posix()) is not None


def _no_such_split(folder: Path, split: str, splits: object) -> UserError:
    known = ", ".join(sorted(map(str, splits))) or "none"  # type: ignore[call-overload]
    return UserError(f"{folder} has no split {split!r} (it has {known})", "set the source's `split` to one of them")
