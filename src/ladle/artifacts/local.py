"""Local inputs by content: find the files, hash them once, remember each hash by path, size and modification time."""

from __future__ import annotations

import glob
import json
from pathlib import Path

from ladle.artifacts.files import hash_file, make_folder, pretty_json, write_text_durably
from ladle.artifacts.record import RECORD_NAME
from ladle.artifacts.step import LocalFiles
from ladle.errors import UserError


class FileHashes:
    """Remembers the blake3 of files, so that planning twice does not read 100 GB twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list] = json.loads(path.read_text()) if path.is_file() else {}

    def hash(self, path: Path) -> str:
        """Return the file's blake3, read again only where its size or modification time changed."""
        stat = path.stat()
        key, signature = str(path.absolute()), [stat.st_size, stat.st_mtime_ns]
        known = self.known.get(key)
        if known is None or known[:2] != signature:
            self.known[key] = [*signature, hash_file(path)]
            make_folder(self.path.parent)
            write_text_durably(self.path, pretty_json(self.known))
        return self.known[key][2]


def find_local(reference: str) -> tuple[Path, ...]:
    """Return the file, the folder, or the sorted matches of the glob that `reference` names; nothing where it names none."""
    path = Path(reference).expanduser()
    if path.exists():
        return (path,)
    return tuple(Path(match) for match in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207 - absolute globs too


def hash_local(paths: tuple[Path, ...], hashes: FileHashes) -> LocalFiles:
    """Describe files and folders by content; a folder stands for all files below it (hidden ones and record.json left out).

    Raises:
        UserError: a folder that holds no file.
    """
    files: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _counts(file, path))
        if not found:
            raise UserError(f"{path} holds no files", "name a folder or file with data in it")
        files += found
    return LocalFiles(paths, tuple((str(file), hashes.hash(file)) for file in files))


def _counts(file: Path, folder: Path) -> bool:
    relative = file.relative_to(folder)
    return file.is_file() and file.name != RECORD_NAME and not any(part.startswith(".") for part in relative.parts)
