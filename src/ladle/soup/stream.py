"""The streaming core: read a chunk of every member, hash it, average it, put it into the output, chunk after chunk.

Each thread takes the next chunk and does all of its work while the bytes are in that core's cache; hashing comes first,
for its arithmetic hides the way from memory to cache. Only hashing has an order (blake3 goes through a file from its
first byte to its last), kept by a turnstile a file: while one thread hashes, the other averages, or hashes one file
behind. Memory is a few chunks, whatever the size of the model.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ladle.errors import UserError
from ladle.log import ProgressBar
from ladle.soup.combine import Combiner
from ladle.soup.config import SoupConfig
from ladle.soup.members import Member
from ladle.soup.plan import OutputFile, Run, Source, size_of
from ladle.soup.preflight import Soup
from ladle.soup.reading import MemberFile, open_file
from ladle.soup.sinks import Sink
from ladle.soup.turnstile import Turnstile
from ladle.soup.weights import Coefficients

ALIGNMENT = 4096
"""Chunks hold multiples of this many elements, and all but a run's first begin at multiples of as many bytes in the
output, so that pages, vectors and disk blocks stay whole."""
MIB = 2**20
FileKey = tuple[int, str]
"""A member, by position, and one of its files."""


@dataclass(frozen=True)
class Streamed:
    """What a pass over one output file learned.

    Attributes:
        inputs: blake3 of the members' files that the pass read from end to end.
        output: blake3 of the output file.
        nonfinite: how many results are NaN or infinite.
        unequal: tensors that are not averaged and differ between members.
    """

    inputs: dict[FileKey, str]
    output: str
    nonfinite: int
    unequal: set[str]


class _Lane(NamedTuple):
    """One source of a run, and where its bytes are hashed; None where they are not."""

    file: MemberFile
    offset: int
    size: int
    turnstile: Turnstile | None


class _Chunk(NamedTuple):
    run: Run
    first: int
    count: int
    tickets: list[int]
    """When each source's bytes are hashed."""
    out_ticket: int


class _Buffers:
    """A thread's memory: a row of bytes a source, and one for the result, grown when a run needs more.

    Maps, not arrays, for they begin with a page.
    """

    def __init__(self) -> None:
        self._memory: list[memoryview] = []
        self._run: Run | None = None
        self._count = 0
        self.rows: list[memoryview] = []
        self.out = memoryview(b"")

    def fit(self, run: Run, count: int) -> None:
        """Make rows and result hold exactly `count` elements of a run."""
        if run is self._run and count == self._count:
            return
        sizes = [count * run.out_size, *(count * size_of(source.dtype) for source in run.sources)]
        for index, size in enumerate(sizes):
            if index == len(self._memory):
                self._memory.append(memoryview(b""))
            if len(self._memory[index]) < size:
                self._memory[index] = memoryview(mmap.mmap(-1, size))
        self.out, *self.rows = [memory[:size] for memory, size in zip(self._memory, sizes, strict=False)]
        self._run, self._count = run, count


class FileStream:
    """One pass over the members for one output file."""

    def __init__(
        self, file: OutputFile, soup: Soup, coefficients: Coefficients, config: SoupConfig, sink: Sink, bar: ProgressBar
    ) -> None:
        self.file, self.members, self.config = file, soup.members, config
        self.combiner = Combiner(soup, coefficients)
        self.sink, self.bar = sink, bar
        self.output = Turnstile(file.header)
        self.inputs: dict[FileKey, Turnstile] = {}
        self.files: dict[FileKey, MemberFile] = {}
        self.lock = threading.Lock()
        self.lanes: dict[int, list[_Lane]] = {}
        self.cuts = self._cut()
        self.done_bytes = 0
        self.is_stopped = False

    def run(self) -> Streamed:
        """Stream the whole file.

        Raises:
            UserError: a member holds NaN or infinity, or members differ in bytes that are not averaged, and the config
                does not waive it; or a member's file changes meanwhile.
        """
        keys = {(source.member, source.file) for run in self.file.runs for source in run.sources}
        paths = {key: self.members[key[0]].folder / key[1] for key in sorted(keys)}
        before = {path: path.stat() for path in paths.values()}
        with ExitStack() as stack:
            self.files = {key: open_file(path, self.config.reader, stack) for key, path in paths.items()}
            if self.config.hash_inputs:
                self.inputs = {key: self._open_turnstile(key) for key in _read_in_full(self.file, self.members)}
            self.lanes = {id(run): [self._lane(source) for source in run.sources] for run in self.file.runs}
            self.sink.put(0, memoryview(self.file.header))
            self._work_in_threads()
        _check_unchanged(before)
        hashes = {key: turnstile.hexdigest() for key, turnstile in self.inputs.items()}
        return Streamed(hashes, self.output.hexdigest(), self.combiner.nonfinite, self.combiner.unequal)

    def _open_turnstile(self, key: FileKey) -> Turnstile:
        header = self.members[key[0]].headers[key[1]]
        return Turnstile(self.files[key].read(0, memoryview(bytearray(header.data_start))))

    def _lane(self, source: Source) -> _Lane:
        key = source.member, source.file
        return _Lane(self.files[key], source.offset, size_of(source.dtype), self.inputs.get(key))

    def _work_in_threads(self) -> None:
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="soup") as pool:
            workers = [pool.submit(self._work) for _ in range(self.config.threads)]
            try:
                wait(workers)
            finally:
                self._stop()
        for worker in workers:
            worker.result()

    def _stop(self) -> None:
        with self.lock:
            self.is_stopped = True
        for turnstile in (self.output, *self.inputs.values()):
            turnstile.close()

    def _work(self) -> None:
        buffers = _Buffers()
        try:
            while (chunk := self._next_chunk()) is not None:
                buffers.fit(chunk.run, chunk.count)
                lanes = self.lanes[id(chunk.run)]
                rows = [
                    lane.file.read(lane.offset + chunk.first * lane.size, buffer)
                    for lane, buffer in zip(lanes, buffers.rows, strict=True)
                ]
                for lane, ticket, row in zip(lanes, chunk.tickets, rows, strict=True):
                    if lane.turnstile is not None:
                        lane.turnstile.update(ticket, row)
                result = self.combiner.combine(chunk.run, chunk.first, rows, buffers.out)
                self.output.update(chunk.out_ticket, result)
                self.sink.put(chunk.run.out_offset + chunk.first * chunk.run.out_size, result)
                for lane, row in zip(lanes, rows, strict=True):
                    lane.file.release(lane.offset + chunk.first * lane.size, len(row))
        except BaseException:
            self._stop()
            raise

    def _cut(self) -> Iterator[tuple[Run, int, int]]:
        """Yield (run, first element, elements) of every chunk, in the order of the output."""
        for run in self.file.runs:
            width = run.out_size + sum(size_of(source.dtype) for source in run.sources)
            step = max(self.config.chunk_bytes // width // ALIGNMENT, 1) * ALIGNMENT
            lead = min(-run.out_offset % ALIGNMENT // run.out_size, run.num_elements)
            if lead:
                yield run, 0, lead
            for first in range(lead, run.num_elements, step):
                yield run, first, min(step, run.num_elements - first)

    def _next_chunk(self) -> _Chunk | None:
        with self.lock:
            cut = None if self.is_stopped else next(self.cuts, None)
            if cut is None:
                return None
            run, first, count = cut
            self._advance(count * run.out_size)
            tickets = [lane.turnstile.ticket() if lane.turnstile else 0 for lane in self.lanes[id(run)]]
            return _Chunk(run, first, count, tickets, self.output.ticket())

    def _advance(self, size_bytes: int) -> None:
        before = self.done_bytes // MIB
        self.done_bytes += size_bytes
        self.bar.advance(self.done_bytes // MIB - before)


def _check_unchanged(before: dict[Path, os.stat_result]) -> None:
    for path, then in before.items():
        now = path.stat()
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            fix = "leave the members alone during a soup, and run it again"
            raise UserError(f"{path} changed while it was read", fix)


def _read_in_full(file: OutputFile, members: Sequence[Member]) -> list[FileKey]:
    """Return the members' files that this output file's runs read from the first tensor to the last, in order."""
    position: dict[FileKey, int | None] = {}
    for run in file.runs:
        for source in run.sources:
            key = (source.member, source.file)
            start = position.setdefault(key, members[source.member].headers[source.file].data_start)
            stop = source.offset + run.num_elements * size_of(source.dtype)
            position[key] = stop if start == source.offset else None
    return [key for key, stop in position.items() if stop == members[key[0]].headers[key[1]].size_bytes]
