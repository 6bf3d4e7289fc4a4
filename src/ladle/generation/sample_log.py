"""Finished samples on disk, so that a killed run loses at most the ones in flight.

A log is a JSON Lines file that only grows. Lines are flushed to the device together, every second or so; a line that
a crash cut short is dropped when the log is opened again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO

from ladle.generation.request import Sample

FLUSH_EVERY_SECONDS = 1.0


class SampleLog:
    """Appends samples to one file. A context manager.

    Args:
        path: the file; made if it is not there, and continued if it is.
    """

    def __init__(self, path: Path) -> None:
        _cut_torn_line(path)
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._opened = self._flushed = time.monotonic()

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._file.close()

    def append(self, sample: Sample) -> None:
        """Add a sample; it is safe from a crash once a second has passed."""
        self._file.write(json.dumps(asdict(sample), ensure_ascii=False) + "\n")
        if time.monotonic() - self._flushed >= FLUSH_EVERY_SECONDS:
            self._flush()

    def _flush(self) -> None:
        now = time.monotonic()
        self._file.write(json.dumps({"seconds": now - self._flushed}) + "\n")
        self._flushed = now
        self._file.flush()
        os.fsync(self._file.fileno())


def read_log(path: Path) -> tuple[dict[str, Sample], float]:
    """Return the whole samples of a log by id, and the seconds spent on them; nothing where there is no file."""
    samples: dict[str, Sample] = {}
    seconds = 0.0
    for row in _whole_rows(path):
        if "seconds" in row:
            seconds += row["seconds"]
        else:
            samples[row["id"]] = Sample(**row)
    return samples, seconds


def _whole_rows(path: Path) -> Iterator[dict]:
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)


def _cut_torn_line(path: Path) -> None:
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
