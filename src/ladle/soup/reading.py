"""Reading ranges of the members' files: through a memory map where the kernel can fill it in advance, else by pread.

The map saves copying every byte of every member out of the page cache, about half of what `cat` costs. Its danger is
that a page which cannot be read kills the process instead of raising; filling a range before it is touched
(MADV_POPULATE_READ, Linux 5.14) makes that an error like any other. Pages that were used are let go a window at a
time, so that maps do not add up.
"""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from ladle.errors import UserError

MADV_POPULATE_READ = 22
"""From linux/mman.h; Python does not name it yet."""
ALIGNMENT = 4
"""The kernel reads numbers of up to 4 bytes where they stand; a file may put them anywhere, say after 3 booleans."""
WINDOW = 32 * 2**20
"""Bytes of a file let go at a time: often enough to stay small, seldom enough to cost nothing."""


class MemberFile(Protocol):
    """A file of a member, open for reading from any thread."""

    def read(self, offset: int, buffer: memoryview) -> memoryview:
        """Return the bytes from `offset` on, as many as `buffer` holds; they may or may not stand in `buffer`.

        Raises:
            UserError: the file is shorter than it was, or cannot be read.
        """
        ...

    def release(self, offset: int, size: int) -> None:
        """Say that bytes are no longer needed, in about the order of the file."""
        ...


def open_file(path: Path, reader: str, stack: ExitStack) -> MemberFile:
    """Open a file by `reader`: `map` where that works, `pread` always; `stack` closes it."""
    descriptor = os.open(path, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    mapped = _map(descriptor) if reader == "map" else None
    return _PreadFile(path, descriptor) if mapped is None else _MappedFile(path, descriptor, mapped)


def _map(descriptor: int) -> mmap.mmap | None:
    """Map a whole file; None where the kernel cannot fill a range in advance."""
    if sys.platform != "linux":
        return None
    mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    try:
        mapped.madvise(MADV_POPULATE_READ, 0, mmap.PAGESIZE)
        mapped.madvise(mmap.MADV_SEQUENTIAL)
    except OSError:
        mapped.close()
        return None
    return mapped


class _PreadFile:
    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def read(self, offset: int, buffer: memoryview) -> memoryview:
        done = 0
        while done < len(buffer):
            count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise _changed(self.path)
            done += count
        return buffer

    def release(self, offset: int, size: int) -> None:
        pass


class _MappedFile:
    def __init__(self, path: Path, descriptor: int, mapped: mmap.mmap) -> None:
        self.path, self.descriptor, self.mapped = path, descriptor, mapped
        self.bytes = memoryview(mapped)

    def read(self, offset: int, buffer: memoryview) -> memoryview:
        stop = offset + len(buffer)
        if stop > len(self.bytes):
            raise _changed(self.path)
        try:
            self.mapped.madvise(MADV_POPULATE_READ, *_pages(offset, len(buffer)))
        except OSError as error:
            raise _changed(self.path) from error
        if offset % ALIGNMENT == 0:
            return self.bytes[offset:stop]
        buffer[:] = self.bytes[offset:stop]
        return buffer

    def release(self, offset: int, size: int) -> None:
        window = (offset + size) // WINDOW
        if window > offset // WINDOW and window >= 2:  # one window stays, for threads that are a chunk behind
            self.mapped.madvise(mmap.MADV_DONTNEED, (window - 2) * WINDOW, WINDOW)


def _pages(offset: int, size: int) -> tuple[int, int]:
    start = offset - offset % mmap.PAGESIZE
    return start, size + offset - start


def _changed(path: Path) -> UserError:
    problem = f"{path} became shorter while it was read, or its disk failed"
    return UserError(problem, "leave the members alone during a soup, and run it again")
