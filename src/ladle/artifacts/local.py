"""Local inputs by content: find the files and hash them, before a step or, where it reads them anyway, within it."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from ladle.artifacts.build import natural_key
from ladle.artifacts.file_hashes import FileHashes, signature_of
from ladle.artifacts.record import RECORD_NAME
from ladle.artifacts.step import LocalFiles, UnreadFiles
from ladle.errors import UserError

SMALL_BYTES = 2**20
"""Files up to this size are hashed at once: configs and tokenizers, which a stage need not hash for us."""


def find_local(reference: str) -> tuple[Path, ...]:
    """Return the file, folder or sorted matches of the glob that `reference` names; empty where it names none."""
    path = Path(reference).expanduser()
    if path.exists():
        return (path,)
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return tuple(sorted(map(Path, matches), key=natural_key))


def hash_local(paths: tuple[Path, ...], hashes: FileHashes, ignore: tuple[str, ...] = ()) -> LocalFiles:
    """Describe files and folders by content.

    A folder stands for all files below it, hidden ones, record.json and those that match `ignore` left out.

    Raises:
        UserError: a folder that holds no file.
    """
    described = tuple((str(file), name, hashes.hash(file)) for file, name in _list(paths, ignore))
    hashes.save()
    return LocalFiles(paths, described)


def leave_unread(paths: tuple[Path, ...], hashes: FileHashes, ignore: tuple[str, ...] = ()) -> LocalFiles | UnreadFiles:
    """Describe files and folders by content where it is known or small; the rest is hashed by the stage that reads it.

    Raises:
        UserError: a folder that holds no file.
    """
    files = [(file, name, signature_of(file)) for file, name in _list(paths, ignore)]
    if all(size <= SMALL_BYTES or hashes.find(file, (size, mtime)) for file, _, (size, mtime) in files):
        return hash_local(paths, hashes, ignore)
    return UnreadFiles(paths, tuple((str(file), name, signature) for file, name, signature in files), hashes)


def _list(paths: tuple[Path, ...], ignore: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Yield every file with its name in the folder that was given."""
    for path in paths:
        if path.is_file():
            yield path, ""
            continue
        found = sorted(file for file in path.rglob("*") if _counts(file, path, ignore))
        if not found:
            raise UserError(f"{path} holds no files", "name a folder or file with data in it")
        yield from ((file, file.relative_to(path).as_posix()) for file in found)


def _counts(file: Path, folder: Path, ignore: tuple[str, ...]) -> bool:
    relative = file.relative_to(folder)
    is_hidden = any(part.startswith(".") for part in relative.parts)
    is_ignored = any(fnmatch(relative.as_posix(), pattern) for pattern in ignore)
    return file.is_file() and file.name != RECORD_NAME and not is_hidden and not is_ignored
