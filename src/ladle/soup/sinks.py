"""Where the bytes of an output file go."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

BLOCK = 4096
"""What writing past the page cache is aligned to, on disk and in memory: a page, at least any disk's block."""


class Sink(Protocol):
    """Takes the bytes of one output file, in any order and from any thread."""

    def put(self, offset: int, data: memoryview) -> None:
        """Take the bytes that belong at `offset`."""
        ...


class WritingSink:
    """Puts bytes into a file that has its full size from the start, so that a full disk is noticed before the work.

    Whole blocks that stand right in memory go to the disk past the page cache: the cache would cost a copy of every
    byte and as much memory as the result is large, which it takes from the members that are being read.
    """

    def __init__(self, descriptor: int, direct: int | None) -> None:
        self.descriptor, self.direct = descriptor, direct

    @classmethod
    @contextmanager
    def create(cls, path: Path, size_bytes: int, writer: str) -> Iterator[WritingSink]:
        """Make the file, over any of that name, and yield a sink for it.

        Args:
            path: the file.
            size_bytes: its size.
            writer: `direct` past the page cache where that works, `cache` through it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            stack.callback(os.close, descriptor)
            _allocate(descriptor, size_bytes)
            direct = _open_direct(path) if writer == "direct" else None
            if direct is not None:
                stack.callback(os.close, direct)
            yield cls(descriptor, direct)

    def put(self, offset: int, data: memoryview) -> None:
        """Write the bytes at their place."""
        if self.direct is not None and offset % BLOCK == 0 and _address(data) % BLOCK == 0:
            whole = len(data) // BLOCK * BLOCK
            done = _write_direct(self.direct, offset, data[:whole])
            offset, data = offset + done, data[done:]
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            offset, data = offset + written, data[written:]


def _open_direct(path: Path) -> int | None:
    """Open a file for writing past the page cache; None where the system or the file system has no such thing."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        return None


def _write_direct(descriptor: int, offset: int, blocks: memoryview) -> int:
    """Write blocks and return how many bytes went; fewer where a device wants more than our alignment."""
    try:
        return os.pwrite(descriptor, blocks, offset) if blocks else 0
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0


def _address(data: memoryview) -> int:
    return np.frombuffer(data, np.uint8).__array_interface__["data"][0] if data else 0


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
