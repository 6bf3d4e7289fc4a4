"""Where the bytes of an output file go."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Sink(Protocol):
    """Takes the bytes of one output file, in any order and from any thread."""

    def put(self, offset: int, data: memoryview) -> None:
        """Take the bytes that belong at `offset`."""
        ...


class WritingSink:
    """Puts bytes into a file that has its full size from the start, so that a full disk is noticed before the work."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    @contextmanager
    def create(cls, path: Path, size_bytes: int) -> Iterator[WritingSink]:
        """Make the file, over any of that name, and yield a sink for it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _allocate(descriptor, size_bytes)
            yield cls(descriptor)
        finally:
            os.close(descriptor)

    def put(self, offset: int, data: memoryview) -> None:
        """Write the bytes at their place."""
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            offset, data = offset + written, data[written:]


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Reserve the file's blocks, or where the file system cannot, set its size."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except AttributeError:  # macOS
        os.ftruncate(descriptor, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.ftruncate(descriptor, size_bytes)
