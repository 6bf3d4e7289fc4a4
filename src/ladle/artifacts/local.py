"""Local inputs by content: find the files, hash them once, remember each hash by path, size and modification time."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from ladle.artifacts.build import natural_key
from ladle.artifacts.files import hash_file, make_folder, pretty_json, write_text_durably
from ladle.artifacts.record import RECORD_NAME
from ladle.artifacts.step import LocalFiles
from ladle.errors import UserError


class FileHashes:
    """Remembers the blake3 of files, so that planning twice does not read 100 GB twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list[Any]] = json.loads(path.read_text()) if path.is_file() else {}
        self.has_new = False

    def hash(self, path: Path) -> str:
        """Return the file's blake3, read again only where its size or modification time changed."""
        stat = path.stat()
        key, signature = str(path.absolute()), [stat.st_size, stat.st_mtime_ns]
        known = self.known.get(key)
        if known is None or known[:2] != signature:
            known = self.known[key] = [*signature, hash_file(path)]
            self.has_new = True
        return known[2]

    def save(self) -> None:
        """Keep what was learnt for the next plan."""
        if self.has_new:
            make_folder(self.path.parent)
            write_text_durably(self.path, pretty_json(self.known))
            self.has_new = False


def find_local(reference: str) -> tuple[Path, ...]:
    """Return the file, folder or sorted matches of the glob that `reference` names; empty where it names none."""
    path = Path(reference).expanduser()
    if path.exists():
        return (path,)
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return tuple(sorted(map(Path, matches), key=natural_key))


def hash_local(paths: tuple[Path, ...], hashes: FileHashes) -> LocalFiles:
    """Describe files and folders by content.

    A folder stands for all files below it, hidden ones and record.json left out.

    Raises:
        UserError: a folder that holds no file.
    """
    files: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_file():
            files.append((path, ""))
            continue
        found = sorted(file for file in path.rglob("*") if _counts(file, path))
        if not found:
            raise UserError(f"{path} holds no files", "name a folder or file with data in it")
        files += [(file, file.relative_to(path).as_posix()) for file in found]
    described = tuple((str(file), name, hashes.hash(file)) for file, name in files)
    hashes.save()
    return LocalFiles(paths, described)


def _counts(file: Path, folder: Path) -> bool:
    relative = file.relative_to(folder)
    return file.is_file() and file.name != RECORD_NAME and not any(part.startswith(".") for part in relative.parts)
