"""The blake3 of local files, remembered by path, size and modification time."""

from __future__ import annotations

import json
from pathlib import Path

from ladle.artifacts.files import hash_file, make_folder, pretty_json, write_text_durably

Signature = tuple[int, int]
"""Size in bytes and modification time in nanoseconds: a file that keeps both is taken to be the same file."""


def signature_of(path: Path) -> Signature:
    """Return what a file is recognised by."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class FileHashes:
    """Remembers the blake3 of files, so that planning twice does not read 100 GB twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[Signature, str]] = _read(path)
        self._has_new = False

    def hash(self, path: Path) -> str:
        """Return the file's blake3, read again only where its size or modification time changed."""
        signature = signature_of(path)
        known = self.find(path, signature)
        if known is None:
            known = hash_file(path)
            self.learn(path, signature, known)
        return known

    def find(self, path: Path, signature: Signature) -> str | None:
        """Return the file's blake3 if it is known for this signature."""
        known_signature, digest = self._known.get(str(path.absolute()), (None, None))
        return digest if known_signature == signature else None

    def learn(self, path: Path, signature: Signature, digest: str) -> None:
        """Remember the blake3 of a file that had this signature before and after it was read."""
        self._known[str(path.absolute())] = (signature, digest)
        self._has_new = True

    def save(self) -> None:
        """Keep what was learnt for the next plan."""
        if self._has_new:
            make_folder(self.path.parent)
            rows = {path: [*signature, digest] for path, (signature, digest) in self._known.items()}
            write_text_durably(self.path, pretty_json(rows))
            self._has_new = False


def _read(path: Path) -> dict[str, tuple[Signature, str]]:
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: ((size, mtime_ns), digest) for name, (size, mtime_ns, digest) in rows.items()}
