"""Streams the rows of a piece in small batches. A line that is not JSON or not UTF-8 comes as an `Unreadable`, in its
place."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ladle.data.sources.pieces import Piece, unreadable
from ladle.errors import UserError

BATCH_ROWS = 256
BATCH_BYTES = 2**20
BUFFER_BYTES = 2**20
LONG_LINE_BYTES = 2**24


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read."""

    reason: str


Row = dict[str, Any] | Unreadable


def read_rows(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    """Yield the rows of a piece, in order, in batches.

    Args:
        piece: what to read.
        columns: columns needed; None for all of them.

    Raises:
        UserError: a column that does not exist, or a damaged file.
    """
    if piece.kind == "parquet":
        return _read_parquet(piece, columns)
    if piece.kind == "arrow":
        return _read_arrow(piece, columns)
    return _read_jsonl(piece, columns)


def missing_column(path: Path, wanted: Sequence[str], present: Sequence[str]) -> UserError:
    """Return the error for columns that a file does not have."""
    missing = ", ".join(column for column in wanted if column not in present)
    return UserError(
        f"{path} has no column {missing} (its columns: {', '.join(present) or 'none'})",
        "set the source's `text`, `messages`, `input_ids` or `template` to a column it has",
    )


def _read_parquet(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    try:
        with pq.ParquetFile(piece.path, memory_map=True, page_checksum_verification=True) as file:
            _require(piece.path, columns, file.schema_arrow.names)
            groups = list(range(piece.start, piece.stop))
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=_listed(columns), use_threads=False):
                yield batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(piece.path, error) from error


def _read_arrow(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    from datasets import Dataset

    dataset = Dataset.load_from_disk(str(piece.path))
    _require(piece.path, columns, dataset.column_names)
    if columns is not None:
        dataset = dataset.select_columns(list(columns))
    try:
        for start in range(piece.start, piece.stop, BATCH_ROWS):
            table: Any = dataset.with_format("arrow")[start : min(start + BATCH_ROWS, piece.stop)]
            yield table.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(piece.path, error) from error


def _read_jsonl(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    for number, batch in enumerate(_jsonl_batches(piece)):
        if number == 0:
            _require_in_some(piece.path, columns, batch)
        yield batch


def _require_in_some(path: Path, columns: Sequence[str] | None, batch: list[Row]) -> None:
    """Refuse a file none of whose first rows has the columns; single rows without them are counted as bad later."""
    rows = [row for row in batch if isinstance(row, dict)]
    if columns is not None and rows and not any(set(columns) <= set(row) for row in rows):
        raise missing_column(path, columns, sorted({name for row in rows for name in row}))


def _jsonl_batches(piece: Piece) -> Iterator[list[Row]]:
    batch: list[Row] = []
    held = 0
    for line in _lines(piece):
        if line.isspace():
            continue
        batch.append(_parse(line))
        held += len(line)
        del line  # a document may fill a good part of memory: it is not kept in two forms
        if len(batch) >= BATCH_ROWS or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _parse(line: bytes) -> Row:
    try:
        row = _parse_long(line) if len(line) > LONG_LINE_BYTES else json.loads(line.decode("utf-8"))
    except UnicodeError:
        return Unreadable("bad_utf8")
    except ValueError:
        return Unreadable("bad_json")
    return row if isinstance(row, dict) else Unreadable("not_an_object")


def _parse_long(line: bytes) -> Any:
    """Parse a line of JSON without holding it twice at four bytes a character, which one emoji is enough for.

    Bytes past ASCII are passed through the parser as surrogates, two bytes each, and decoded string by string.
    """
    return _decode_strings(json.loads(line.decode("ascii", "surrogateescape")))


def _decode_strings(value: Any) -> Any:
    """Undo the passing through; takes containers apart as it goes, so that no string is held in two forms."""
    if isinstance(value, str):
        encoded = value.encode("utf-8", "surrogateescape")
        del value
        return encoded.decode("utf-8")
    if isinstance(value, list):
        return [_decode_strings(item) for item in value]
    if isinstance(value, dict):
        return {_decode_strings(key): _decode_strings(value.pop(key)) for key in list(value)}
    return value


def _lines(piece: Piece) -> Iterator[bytes]:
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(piece.path.open("rb", buffering=BUFFER_BYTES))
        try:
            if piece.kind == "jsonl":
                yield from _lines_between(raw, piece.start, piece.stop)
            elif piece.kind == "jsonl.gz":
                yield from stack.enter_context(gzip.open(raw))
            else:
                yield from io.BufferedReader(_zstd_stream(raw), BUFFER_BYTES)
        except (EOFError, zlib.error, OSError) as error:
            raise unreadable(piece.path, error) from error


def _lines_between(stream: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    stream.seek(start)
    position = start
    while position < stop:
        line = [stream.readline()]
        position += len(line[0])
        yield line.pop()


def _zstd_stream(raw: BinaryIO) -> io.RawIOBase:
    """Return a decompressed view of `raw` that ends with an error where the last frame is cut short."""
    return pa.CompressedInputStream(raw, "zstd")  # type: ignore[return-value]


def _require(path: Path, columns: Sequence[str] | None, present: Sequence[str]) -> None:
    if columns is not None and not set(columns) <= set(present):
        raise missing_column(path, columns, present)


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
