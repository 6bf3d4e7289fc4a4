"""Crash journals: the finished items of long work, kept across crashes.

`ShardJournal` keeps a file for each item. An item's name says its content (a content hash, or an index of a step whose
fingerprint fixes the content), so a file that carries the name and matches its recorded hash is the item. An item is
worked into `.NAME.tmp`, flushed, renamed to `NAME`, and only then acknowledged by `NAME.b3` (its blake3).

`RowJournal` keeps small items that finish one by one as lines of one file, each behind its hash.

A restart keeps what verifies and works the rest again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from ladle.artifacts.files import hash_bytes, hash_file, replace_durably, write_text_durably
from ladle.executors import Executor
from ladle.log import progress

HASH_SUFFIX = ".b3"
FLUSH_EVERY_SECONDS = 1.0

Work = Callable[[Any, Path], None]


class ShardJournal:
    """Finished items of one resumable piece of work, one file an item, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        items: Mapping[str, Any],
        work: Work,
        executor: Executor,
        description: str = "shards",
        unit: str = "shards",
    ) -> dict[str, Path]:
        """Work every item that is not finished yet and return each item's file, in the order of `items`.

        Args:
            items: item name to the argument that `work` gets.
            work: writes the one file of an item at the path it is given; picklable where the executor needs it.
            executor: where the items are worked.
            description: what the progress line says.
            unit: what the progress line counts.
        """
        unfinished = {name: argument for name, argument in items.items() if not self.is_finished(name)}
        with progress(total=len(items), description=description, unit=unit) as bar:
            bar.advance(len(items) - len(unfinished))
            for _ in executor.map(partial(_work_item, work, self.folder), list(unfinished.items())):
                bar.advance(1)
        return {name: self.folder / name for name in items}

    def is_finished(self, name: str) -> bool:
        """Tell whether the item's file is there and matches the hash written when it was finished."""
        path, record = self.folder / name, self.folder / (name + HASH_SUFFIX)
        return path.is_file() and record.is_file() and self.hash_of(name) == hash_file(path)

    def hash_of(self, name: str) -> str:
        """Return the blake3 of a finished item's file."""
        return (self.folder / (name + HASH_SUFFIX)).read_text().strip()


def _work_item(work: Work, folder: Path, item: tuple[str, Any]) -> None:
    name, argument = item
    temporary = folder / f".{name}.tmp"
    work(argument, temporary)
    digest = hash_file(temporary)
    replace_durably(temporary, folder / name)
    write_text_durably(folder / (name + HASH_SUFFIX), digest + "\n")


class RowJournal:
    """Finished items as JSON rows, appended to one file by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def appending(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Yield the function that appends a row; the row is safe from a crash once a second has passed."""
        with self.path.open("ab") as file:
            if file.tell():
                file.write(b"\n")  # ends a line that a crash cut short
            flushed = time.monotonic()

            def append(row: Mapping[str, Any]) -> None:
                nonlocal flushed
                line = json.dumps(row).encode()
                file.write(hash_bytes(line).encode() + b" " + line + b"\n")
                if time.monotonic() - flushed >= FLUSH_EVERY_SECONDS:
                    _flush(file)
                    flushed = time.monotonic()

            try:
                yield append
            finally:
                _flush(file)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every whole row; damaged lines, and those that a crash cut short, are left out."""
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else ():
            digest, _, row = line.partition(b" ")
            if digest.decode(errors="replace") == hash_bytes(row):
                yield json.loads(row)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
