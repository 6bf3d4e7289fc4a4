"""Cuts data files into pieces of about the same size, at places that only the data decides.

A piece is the unit of tokenizing: named by the hash of its content, worked by one worker, kept as one token shard.
Plain jsonl is cut at line ends, parquet between row groups, `save_to_disk` folders between rows; a compressed jsonl
is one stream and so one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from ladle.artifacts.files import hash_bytes, hash_file
from ladle.data.sources.files import DataFile, Kind
from ladle.errors import UserError

READ_BYTES = 2**20


@dataclass(frozen=True)
class Piece:
    """A run of documents in one file."""

    path: Path
    kind: Kind
    start: int
    """First byte (jsonl), row group (parquet) or row (arrow)."""
    stop: int
    """One past the last."""
    digest: str
    """Hash of the content."""
    size_bytes: int
    """About how much there is to read."""


def cut_file(file: DataFile, size_bytes: int) -> list[Piece]:
    """Return the pieces of a file, each of about `size_bytes`.

    Raises:
        UserError: the file cannot be opened as what its name says.
    """
    if file.kind == "jsonl":
        return _cut_jsonl(file.path, size_bytes)
    if file.kind == "parquet":
        return _cut_parquet(file.path, size_bytes)
    if file.kind == "arrow":
        return _cut_arrow(file.path, size_bytes)
    size = file.path.stat().st_size
    return [Piece(file.path, file.kind, 0, size, hash_file(file.path), size)]


def unreadable(path: Path, error: BaseException) -> UserError:
    """Return the error for a file whose content is damaged."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read: {reason}", "fetch the file again, or take it out of the source")


def _cut_jsonl(path: Path, size_bytes: int) -> list[Piece]:
    size = path.stat().st_size
    pieces, start = [], 0
    with path.open("rb") as stream:
        while start < size:
            stop = _next_line_start(stream, start + size_bytes, size)
            pieces.append(Piece(path, "jsonl", start, stop, _hash_range(stream, start, stop), stop - start))
            start = stop
    return pieces


def _next_line_start(stream: BinaryIO, position: int, size: int) -> int:
    """Return where the first line that begins at or after `position` begins."""
    if position >= size:
        return size
    stream.seek(position - 1)
    stream.readline()
    return min(stream.tell(), size)


def _hash_range(stream: BinaryIO, start: int, stop: int) -> str:
    stream.seek(start)
    digest = blake3()
    while start < stop:
        block = stream.read(min(READ_BYTES, stop - start))
        digest.update(block)
        start += len(block)
    return digest.hexdigest()


def _cut_parquet(path: Path, size_bytes: int) -> list[Piece]:
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    whole = hash_file(path)
    return [
        Piece(path, "parquet", first, last, hash_bytes(f"{whole}:{first}:{last}".encode()), sum(sizes[first:last]))
        for first, last in _runs(sizes, size_bytes)
    ]


def _runs(sizes: list[int], limit: int) -> list[tuple[int, int]]:
    """Group consecutive items into runs that end once they reach `limit`."""
    runs, start, held = [], 0, 0
    for index, size in enumerate(sizes):
        held += size
        if held >= limit:
            runs.append((start, index + 1))
            start, held = index + 1, 0
    if start < len(sizes):
        runs.append((start, len(sizes)))
    return runs


def _cut_arrow(folder: Path, size_bytes: int) -> list[Piece]:
    from datasets import Dataset

    try:
        dataset = Dataset.load_from_disk(str(folder))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(folder, error) from error
    rows = len(dataset)
    if rows == 0:
        return []
    whole = hash_bytes("".join(hash_file(file) for file in sorted(folder.iterdir()) if file.is_file()).encode())
    row_bytes = dataset.data.nbytes / max(dataset.data.num_rows, 1)
    cuts = [*range(0, rows, max(1, round(size_bytes / max(row_bytes, 1)))), rows]
    return [
        Piece(
            folder,
            "arrow",
            first,
            last,
            hash_bytes(f"{whole}:{first}:{last}".encode()),
            round((last - first) * row_bytes),
        )
        for first, last in pairwise(cuts)
    ]
