"""Which output files are whole: what a killed soup has done stays done.

The shared shard journal hands out a path and reads the finished file back for its hash. Here an output file is
preallocated and written in place from several threads, and its hash, like those of the members' files, falls out of
the same pass; so the soup keeps its own notes, with the same order of events: write aside, flush, rename, and only
then acknowledge.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ladle.artifacts.files import (
    canonical_json,
    hash_bytes,
    hash_file,
    pretty_json,
    replace_durably,
    write_text_durably,
)

NOTES = ".soup"


class FinishedFiles:
    """The notes in `out/.soup` about the weight files in `out`; they hold for one plan, named by its key."""

    def __init__(self, out: Path, plan: Any) -> None:
        self.out = out
        self.folder = out / NOTES
        self.key = hash_bytes(canonical_json(plan).encode())

    def is_ours(self) -> bool:
        """Whether the folder was left by a soup of this very plan."""
        key_file = self.folder / "key"
        return key_file.is_file() and key_file.read_text() == self.key

    def open(self) -> None:
        """Start taking notes; those of another plan are removed."""
        if not self.is_ours():
            self.close()
            self.folder.mkdir(parents=True)
            write_text_durably(self.folder / "key", self.key)
        for leftover in self.folder.glob("*.partial"):
            leftover.unlink()

    def close(self) -> None:
        """Remove the notes: the result is whole, and recorded elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what was noted about a file, if it is still the file that was finished."""
        note, path = self._note(name), self.out / name
        if not note.is_file() or not path.is_file():
            return None
        record = json.loads(note.read_text(encoding="utf-8"))
        return record if hash_file(path) == record["blake3"] else None

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Move a file that was written aside to its place, and acknowledge it with its blake3 and what else to keep."""
        replace_durably(self.aside(name), self.out / name)
        write_text_durably(self._note(name), pretty_json(record))

    def add_text(self, name: str, text: str) -> None:
        """Write a file that needs no acknowledgement, for it is made again; it too appears whole or not at all."""
        self.aside(name).write_text(text, encoding="utf-8")
        replace_durably(self.aside(name), self.out / name)

    def aside(self, name: str) -> Path:
        """Return where a file is written until it is whole."""
        return self.folder / f"{name}.partial"

    def _note(self, name: str) -> Path:
        return self.folder / f"{name}.json"
