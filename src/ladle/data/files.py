"""Which files of a dataset hold a split: single files, folders, `save_to_disk` folders, downloaded Hub datasets.

In a folder without a dataset card that lists its files, a file names a split by a folder or the end of its name
(`zh/train/0.parquet`, `web_train.jsonl`, `train-00000-of-00002.parquet`); where every file speaks of some split, any
word of its name will do (`train_sft.jsonl`). Of those, the ones named for the split alone are taken if there are any
(`train.jsonl`, `train_2.csv`); and if no file names any split, all of them are `train`. What is left out of `train`
and belongs to no other split is named in a warning.
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
# The kind of each suffix, in lower case. A kind is a format and, after a dot, a compression.
_TEXT_KINDS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "tsv": "tsv"}
SUFFIXES = (
    {".parquet": "parquet"}
    | {f".{name}": kind for name, kind in _TEXT_KINDS.items()}
    | {f".{name}.{how}": f"{kind}.{how}" for name, kind in _TEXT_KINDS.items() for how in COMPRESSIONS}
)
# Kinds that a split is looked for in, one after the other: what stands beside a corpus describes it or repeats it.
# .json.gz is what C4 and others call compressed JSON lines.
_RANKS = (r"jsonl|parquet|json\.", r"csv|tsv", r"json$")
# Files beside the data, which hold no rows.
DESCRIPTIONS = (
    *("record.json", "config.json", "state.json"),
    *("dataset_dict.json", "dataset_info.json", "dataset_infos.json"),
)
# Words that name a split in a file's path, as in `datasets.data_files`.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
MOST_NAMES = 12


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


def split_of(relative: Path, wanted: str, anywhere: bool = True) -> str:
    """Return the split that a file's path names, the wanted one where it could be that; empty where it names none.

    Args:
        relative: the path.
        wanted: the split that it is asked about.
        anywhere: whether the word may stand anywhere in the path, or only as a folder or at the end of the name.
    """
    after = r"(?:[-._/0-9]|$)" if anywhere else r"(?:[-._]?\d[^/]*)?(?:/|\.[a-zA-Z]|$)"
    for split, words in [(wanted, (wanted,)), *SPLIT_WORDS.items()]:
        if any(re.search(rf"(?:^|[-._/0-9]){re.escape(word)}{after}", relative.as_posix()) for word in words):
            return split
    return ""


def kind_of(path: Path) -> str:
    """Return the kind of a data file by its name; empty for a file that is not one."""
    return next((kind for suffix, kind in SUFFIXES.items() if path.name.lower().endswith(suffix)), "")


def _find_in(path: Path, split: str, subset: str | None) -> list[DataFile]:
    if not path.exists():
        raise UserError(f"there is no file or folder {path}", "check the source's `dataset`")
    if subset is not None and _is_one_dataset(path):
        raise UserError(f"{path} is one dataset and has no subset {subset!r}", "leave `subset` out")
    if _is_one_dataset(path):
        files = [path]
    elif (listed := _listed_splits(path, subset)) is None:
        files = _matching_files(path, split, subset)
    elif split in listed:
        files = listed[split]
    else:
        raise _no_such_split(path, split, listed)
    return [_data_file(file) for file in files]


def _is_one_dataset(path: Path) -> bool:
    """Tell whether a path is one file or one `save_to_disk` folder, which are taken whole."""
    return path.is_file() or (path / "state.json").is_file()


def _names_of_splits(path: Path) -> Iterable[str]:
    if _is_one_dataset(path):
        return ["train"]
    listed = _listed_splits(path, None)
    return [_own_split(file.relative_to(path)) for file in _files_below(path)] if listed is None else listed


def _own_split(relative: Path) -> str:
    """Return the split that a file belongs to: its name without the number of a part where datasets keep their files,
    at the top and in `data/`."""
    if relative.parent.as_posix() in (".", "data"):
        suffix = next(suffix for suffix in SUFFIXES if relative.name.lower().endswith(suffix))
        return re.sub(r"(?:^|[-_.])\d.*", "", relative.name[: -len(suffix)]) or "train"
    return split_of(relative, "train") or "train"


def _data_file(path: Path) -> DataFile:
    if kind := "arrow" if path.is_dir() else kind_of(path):
        return DataFile(path, kind)
    problem = f"{path} has a format that cannot be read"
    raise UserError(problem, f"give files ending in {', '.join(SUFFIXES)}, or a save_to_disk folder")


def _listed_splits(folder: Path, subset: str | None) -> dict[str, list[Path]] | None:
    """Return what dataset_dict.json, or the `configs:` of the dataset card, names for each split; None if neither
    does."""
    saved, card = folder / "dataset_dict.json", folder / "README.md"
    if saved.is_file():
        try:
            return {str(name): [folder / str(name)] for name in json.loads(saved.read_bytes())["splits"]}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{saved} does not list the splits ({error})", "save the dataset again") from error
    if not card.is_file() or re.search(rb"^configs:", card.read_bytes(), re.MULTILINE) is None:
        return None
    import yaml
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    try:
        files = load_dataset_builder(str(folder), name=subset).config.data_files or {}
    except (ValueError, OSError, LookupError, TypeError, AttributeError, yaml.YAMLError, DatasetsError) as error:
        problem = f"the files that {card} lists cannot be found: {str(error).splitlines()[0]}"
        fix = "set the source's `subset` to one that its card lists, or correct the card (UTF-8, YAML)"
        raise UserError(problem, fix) from error
    return {str(split): [Path(name) for name in names] for split, names in files.items()}


def _matching_files(folder: Path, split: str, subset: str | None) -> list[Path]:
    found = _files_below(folder)
    if not found:
        raise UserError(f"{folder} holds no data files", f"it needs files ending in {', '.join(SUFFIXES)}")
    if subset is not None:
        tops = sorted({file.relative_to(folder).parts[0] for file in found})
        found = [file for file in found if split_of(file.relative_to(folder), subset) == subset]
        if not found:
            problem = f"{folder} has no files of subset {subset!r} (it holds {', '.join(tops[:MOST_NAMES])})"
            raise UserError(problem, "correct the source's `subset`")
    named = _name_splits(found, folder, split)
    for rank in _RANKS:
        if files := [file for file in found if re.match(rank, kind_of(file)) and named[file] == split]:
            alone = re.compile(rf"{re.escape(split)}(-.*|[_.]?\d.*)?\.[^\d].*")
            taken = [file for file in files if alone.fullmatch(file.name)] or files
            unread = [file for file in found if named[file] in (split, "" if split == "train" else split)]
            if left := [file for file in unread if file not in taken]:
                said = _listed(taken, folder), _listed(left, folder)
                logger.warning("split %s of %s is read from %s; left out: %s", split, folder, *said)
            return taken
    raise _no_such_split(folder, split, {*named.values()} - {""}, [file for file in found if not named[file]])


def _name_splits(files: list[Path], folder: Path, split: str) -> dict[Path, str]:
    """Return the split that each of the files belongs to; empty for none."""
    loosely, named = ({file: split_of(file.relative_to(folder), split, how) for file in files} for how in (True, False))
    if all(loosely.values()):
        return loosely
    if any(named.values()):
        return named
    if split == "train" and (odd := [file for file in files if loosely[file]]):
        logger.warning("%s is read as train: beside files that name no split, it names none", _listed(odd, folder))
    return dict.fromkeys(files, "train")


def _listed(files: Sequence[Path], folder: Path) -> str:
    names = [file.relative_to(folder).as_posix() for file in files]
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else "")


def _files_below(folder: Path) -> list[Path]:
    """Return the data files below a folder, sorted; what is hidden is passed over."""
    found = []
    for file in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in file.relative_to(folder).parts) or file.name in DESCRIPTIONS:
            continue
        if file.is_symlink() and file.is_dir():
            logger.warning("%s is a link to a folder, and not searched", file)
        elif kind_of(file) and file.is_symlink() and not file.exists():
            raise UserError(f"{file} is a link to a file that is not there", "fetch the file, or remove the link")
        elif kind_of(file) and file.is_file():
            found.append(file)
    return found


def _no_such_split(folder: Path, split: str, splits: Iterable[str], unnamed: Sequence[Path] = ()) -> UserError:
    known = ", ".join(sorted(splits)) or "none"
    beside = f"; {_listed(unnamed, folder)}: of none" if unnamed else ""
    fix = "set the source's `split` to one of them, or name its files in `dataset`"
    return UserError(f"{folder} has no split {split!r} (it has {known}{beside})", fix)
