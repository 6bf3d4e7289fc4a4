"""Which files of a dataset hold a split: single files, folders, `save_to_disk` folders, downloaded Hub datasets.

In a folder without a dataset card that lists its files, the files named for the split are taken (`train.jsonl`,
`data/train-00000-of-00002.parquet`, `train_2.csv`); if there are none, those whose path names it as a word
(`zh/train/0.parquet`, `web_train.jsonl`); and if no file names any split, all of them are `train`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ladle.errors import UserError
from ladle.log import get_logger

logger = get_logger(__name__)

COMPRESSIONS = ("gz", "zst", "xz", "bz2")
CORPUS_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"} | {
    f".{name}.{compression}": f"jsonl.{compression}"  # .json.gz is what C4 and others call compressed JSON lines
    for name in ("jsonl", "ndjson", "json")
    for compression in COMPRESSIONS
}
SUFFIXES = (
    CORPUS_SUFFIXES
    | {".json": "json", ".csv": "csv", ".tsv": "tsv"}
    | {f".{name}.{compression}": f"{name}.{compression}" for name in ("csv", "tsv") for compression in COMPRESSIONS}
)
"""The kind of each suffix. A kind is a format and, after a dot, a compression."""
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that name a split in a file's path, as in `datasets.data_files`."""


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset, or one `save_to_disk` folder (kind `arrow`)."""

    path: Path
    kind: str


def find_data_files(paths: Sequence[Path], split: str, subset: str | None = None) -> list[DataFile]:
    """Return the files that hold a split, in the order that numbers their rows: paths as given, sorted below a folder.

    Args:
        paths: files, which are taken whole, and folders, which are searched for the split.
        split: name of the split.
        subset: configuration of the dataset, where it has several.

    Raises:
        UserError: a path is missing or of an unknown format, or the folder does not have the split.
    """
    return [file for path in paths for file in _find_in(path, split, subset)]


def splits_of(paths: Sequence[Path]) -> list[str]:
    """Return the names of the splits that folders hold, in order; a file is the split `train`."""
    return list(dict.fromkeys(name for path in paths for name in _names_of_splits(path)))


def split_of(relative: Path, wanted: str) -> str:
    """Return the split that a file's path names, the wanted one where it could be that; empty where it names none."""
    if _names(relative, wanted):
        return wanted
    named = (split for split, words in SPLIT_WORDS.items() if any(_names(relative, word) for word in words))
    return next(named, "")


def _find_in(path: Path, split: str, subset: str | None) -> list[DataFile]:
    if not path.exists():
        raise UserError(f"there is no file or folder {path}", "check the source's `dataset`")
    if path.is_file():
        return [_data_file(path)]
    if (splits := _saved_splits(path)) is not None:
        if split not in splits:
            raise _no_such_split(path, split, splits)
        return [DataFile(path / split, "arrow")]
    if (path / "state.json").is_file():
        return [DataFile(path, "arrow")]
    if (declared := _declared_files(path, subset)) is not None:
        if split not in declared:
            raise _no_such_split(path, split, declared)
        return [_data_file(Path(name)) for name in declared[split]]
    return _matching_files(path, split, subset)


def _names_of_splits(path: Path) -> Iterable[str]:
    if path.is_file() or (path / "state.json").is_file():
        return ["train"]
    if (splits := _saved_splits(path)) is not None:
        return splits
    if (declared := _declared_files(path, None)) is not None:
        return declared
    files = _files_below(path)
    corpus = [file for file in files if file.name.endswith(tuple(CORPUS_SUFFIXES))]
    return [_own_split(file.relative_to(path)) for file in corpus or files]


def _own_split(relative: Path) -> str:
    """Return the split that a file belongs to: its name's first word where datasets keep their files, at the top and in
    `data/`."""
    if relative.parent.as_posix() in (".", "data"):
        return re.split("[-.]", relative.name, maxsplit=1)[0]
    return split_of(relative, "train") or "train"


def _data_file(path: Path) -> DataFile:
    for suffix, kind in SUFFIXES.items():
        if path.name.endswith(suffix):
            return DataFile(path, kind)
    raise UserError(
        f"{path} has a format that cannot be read",
        f"give files ending in {', '.join(SUFFIXES)}, or a save_to_disk folder",
    )


def _saved_splits(folder: Path) -> list[str] | None:
    file = folder / "dataset_dict.json"
    return json.loads(file.read_text(encoding="utf-8"))["splits"] if file.is_file() else None


def _declared_files(folder: Path, subset: str | None) -> dict[str, list[str]] | None:
    """Return the files that the dataset card's `configs:` names for each split; None where it names none."""
    card = folder / "README.md"
    if not card.is_file() or re.search(r"^configs:", card.read_text(encoding="utf-8"), re.MULTILINE) is None:
        return None
    from datasets import load_dataset_builder

    try:
        declared = load_dataset_builder(str(folder), name=subset).config.data_files or {}
    except ValueError as error:
        raise UserError(
            f"{folder}: {str(error).splitlines()[0]}", "set the source's `subset` to one that its card lists"
        ) from error
    return {str(split): list(files) for split, files in declared.items()}


def _matching_files(folder: Path, split: str, subset: str | None) -> list[DataFile]:
    found = _files_below(folder)
    if not found:
        raise UserError(f"{folder} holds no data files", f"it needs files ending in {', '.join(SUFFIXES)}")
    if subset is not None:
        tops = sorted({file.relative_to(folder).parts[0] for file in found})
        found = [file for file in found if _names(file.relative_to(folder), subset)]
        if not found:
            raise UserError(
                f"{folder} has no files of subset {subset!r} (it holds {', '.join(tops[:12])})",
                "correct the source's `subset`",
            )
    corpus = [file for file in found if file.name.endswith(tuple(CORPUS_SUFFIXES))]
    others = [file for file in found if file not in corpus]  # beside a corpus, they describe it or repeat it
    known: set[str] = set()
    for files in (corpus, others):
        by_split: dict[str, list[Path]] = {}
        for file in files:
            by_split.setdefault(split_of(file.relative_to(folder), split), []).append(file)
        if list(by_split) == [""]:
            unnamed = [file for file in by_split[""] if file.suffix != ".json"]  # such as a model's config.json
            by_split = {"train": unnamed} if unnamed else {}
        if chosen := _named_exactly(by_split.get(split, []), folder, split):
            return [_data_file(file) for file in chosen]
        known |= by_split.keys() - {""}
    raise _no_such_split(folder, split, known)


def _named_exactly(files: list[Path], folder: Path, split: str) -> list[Path]:
    """Return those of a split's files that are named for it alone, or all of them where none is."""
    pattern = re.compile(rf"{re.escape(split)}(-.*|[_.]?\d.*)?\.[^\d].*")
    exact = [file for file in files if pattern.fullmatch(file.name)]
    if exact and len(exact) < len(files):
        left = ", ".join(str(file.relative_to(folder)) for file in files if file not in exact)
        logger.warning("split %s of %s is read from %s; %s not", split, folder, ", ".join(f.name for f in exact), left)
    return exact or files


def _files_below(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.name.endswith(tuple(SUFFIXES))
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _names(relative: Path, word: str) -> bool:
    """Tell whether a word is alone in a path: between separators, digits or its ends."""
    return re.search(rf"(?:^|[-._/0-9]){re.escape(word)}(?:[-._/0-9]|$)", relative.as_posix()) is not None


def _no_such_split(folder: Path, split: str, splits: Iterable[str]) -> UserError:
    known = ", ".join(sorted(splits)) or "none"
    return UserError(f"{folder} has no split {split!r} (it has {known})", "set the source's `split` to one of them")
