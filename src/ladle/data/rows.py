"""The one reader of rows: JSON lines, JSON, CSV, TSV, parquet and `save_to_disk` folders, compressed ones too.

`read_rows` reads the rows of a split and stops at the first bad one. Mixtures read piece by piece: `cut_file` cuts a
file into pieces of about the same size, at places that only the data decides, and `read_piece` yields a piece's rows in
small batches, with an `Unreadable` in the place of a bad one. A piece is the unit of tokenizing: named by the hash of
its content, worked by one worker, kept as one token shard. Plain JSON lines are cut at line ends, parquet between row
groups, `save_to_disk` folders between rows. Any other file is one piece; JSON and CSV files are held in memory whole.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from ladle.artifacts.files import hash_bytes, hash_file
from ladle.data.files import DataFile, find_data_files
from ladle.errors import UserError

BATCH_ROWS = 256
BATCH_BYTES = 2**20
BUFFER_BYTES = 2**20
LONG_LINE_BYTES = 2**24


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read."""

    reason: str
    detail: str = field(default="", compare=False)


Row = dict[str, Any] | Unreadable


@dataclass(frozen=True)
class Piece:
    """A run of rows in one file."""

    path: Path
    kind: str
    start: int
    """First byte (jsonl), row group (parquet) or row (arrow)."""
    stop: int | None
    """One past the last; None for the rest of the file."""
    digest: str
    """Hash of the content."""
    size_bytes: int
    """About how much there is to read."""


def read_rows(paths: Sequence[Path], split: str = "train") -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, in order.

    Raises:
        UserError: no such file or split, a damaged file, or a line that is not a JSON object.
    """
    return (row for _, row in read_placed_rows(paths, split))


def read_placed_rows(paths: Sequence[Path], split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a split, each with its place for error messages: `line 3 of FILE`, or `row 3 of FILE`.

    Raises:
        UserError: as `read_rows`.
    """
    for file in find_data_files(paths, split):
        for place, row in _placed(file):
            if isinstance(row, Unreadable):
                problem, fix = _PROBLEMS[row.reason]
                raise UserError(f"{place} {problem}" + (f" ({row.detail})" if row.detail else ""), fix)
            yield place, row


def _placed(file: DataFile) -> Iterator[tuple[str, Row]]:
    whole = Piece(file.path, file.kind, 0, None, "", 0)
    if file.kind.partition(".")[0] == "jsonl":
        for number, line in enumerate(_lines(whole), start=1):
            if not line.isspace():
                yield f"line {number} of {file.path}", _parse(line)
        return
    rows = (row for batch in read_piece(whole, None) for row in batch)
    for number, row in enumerate(rows, start=1):
        yield f"row {number} of {file.path}", row


def take_rows(dataset: str, paths: Sequence[Path], split: str, first: int, limit: int | None) -> list[dict[str, Any]]:
    """Return `limit` rows from number `first` on, starting over past the last one; all of them where limit is unset.

    Raises:
        UserError: the split is empty.
    """
    rows = list(read_rows(paths, split))
    if not rows:
        raise UserError(f"{dataset} holds no problems in split {split!r}", "name another dataset or split")
    return [rows[number % len(rows)] for number in range(first, first + (limit or len(rows)))]


_PROBLEMS = {
    "bad_json": ("is not JSON", "fix or remove it"),
    "bad_utf8": ("is not UTF-8", "save the file as UTF-8"),
    "not_an_object": ("is not a JSON object", 'write a row as {"column": value, ...}'),
}


def cut_file(file: DataFile, size_bytes: int) -> list[Piece]:
    """Return the pieces of a file, each of about `size_bytes`.

    Raises:
        UserError: the file cannot be opened as what its name says.
    """
    if cut := {"jsonl": _cut_lines, "parquet": _cut_parquet, "arrow": _cut_arrow}.get(file.kind):
        return cut(file.path, size_bytes)
    size = file.path.stat().st_size
    return [Piece(file.path, file.kind, 0, size, hash_file(file.path), size)]


def read_piece(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    """Yield the rows of a piece, in order, in batches.

    Args:
        piece: what to read.
        columns: columns needed; None for all of them.

    Raises:
        UserError: a column that does not exist, or a damaged file.
    """
    read = {"parquet": _read_parquet, "arrow": _read_arrow, "csv": _read_csv, "tsv": _read_csv, "json": _read_json}
    return read.get(piece.kind.partition(".")[0], _read_lines)(piece, columns)


def _unreadable(path: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read: {reason}", "fetch the file again, or take it out of the source")


def _require(path: Path, columns: Sequence[str] | None, present: Sequence[str]) -> list[str] | None:
    """Return the columns to read, after checking that a file has them."""
    if columns is None:
        return None
    if missing := [column for column in columns if column not in present]:
        raise UserError(
            f"{path} has no column {', '.join(missing)} (its columns: {', '.join(present) or 'none'})",
            "set the source's `text`, `messages`, `input_ids` or `template` to a column it has",
        )
    return list(columns)


# JSON lines.


def _cut_lines(path: Path, size_bytes: int) -> list[Piece]:
    size = path.stat().st_size
    pieces, start = [], 0
    with path.open("rb") as stream:
        while start < size:
            stop = size
            if start + size_bytes < size:  # where the first line that begins at or after it begins
                stream.seek(start + size_bytes - 1)
                stream.readline()
                stop = min(stream.tell(), size)
            pieces.append(Piece(path, "jsonl", start, stop, _hash_range(stream, start, stop), stop - start))
            start = stop
    return pieces


def _hash_range(stream: BinaryIO, start: int, stop: int) -> str:
    stream.seek(start)
    digest = blake3()
    while start < stop:
        block = stream.read(min(BUFFER_BYTES, stop - start))
        digest.update(block)
        start += len(block)
    return digest.hexdigest()


def _read_lines(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    for number, batch in enumerate(_line_batches(piece)):
        rows = [row for row in batch if isinstance(row, dict)]
        # a file none of whose first rows has the columns is refused; single rows without them are counted as bad later
        if number == 0 and columns and rows and not any(set(columns) <= row.keys() for row in rows):
            _require(piece.path, columns, sorted({name for row in rows for name in row}))
        yield batch


def _line_batches(piece: Piece) -> Iterator[list[Row]]:
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


def _lines(piece: Piece) -> Iterator[bytes]:
    with _open(piece) as stream:
        if "." in piece.kind:  # one stream, which cannot be entered midway
            yield from stream
            return
        position = stream.seek(piece.start)
        while piece.stop is None or position < piece.stop:
            line = [stream.readline()]
            if not line[0]:
                return
            position += len(line[0])
            yield line.pop()


def _open_zstd(raw: Any) -> io.BufferedReader:
    from pyarrow import CompressedInputStream

    return io.BufferedReader(CompressedInputStream(raw, "zstd"), BUFFER_BYTES)


_DECOMPRESS: dict[str, Callable[[Any], Any]] = {
    "": lambda raw: raw,
    "gz": gzip.open,
    "bz2": bz2.open,
    "xz": lzma.open,
    "zst": _open_zstd,
}


@contextlib.contextmanager
def _open(piece: Piece) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading what it holds once it is decompressed; damage (a last frame cut short, say) is a
    UserError."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(io.BufferedReader(piece.path.open("rb", buffering=0), BUFFER_BYTES))
        try:
            yield stack.enter_context(_DECOMPRESS[piece.kind.partition(".")[2]](raw))
        except (EOFError, zlib.error, lzma.LZMAError, ValueError, OSError) as error:
            raise _unreadable(piece.path, error) from error


def _parse(line: bytes) -> Row:
    try:
        row = _parse_long(line) if len(line) > LONG_LINE_BYTES else json.loads(line.decode("utf-8"))
    except UnicodeError as error:
        return Unreadable("bad_utf8", str(error))
    except ValueError as error:
        return Unreadable("bad_json", str(error))
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


# JSON and tables of text.


def _read_json(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    """Read one JSON value, a list of rows or lists by column; a file that is not that is read as JSON lines."""
    try:
        value = json.loads(piece.path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            sizes = ", ".join(f"{name} {len(column)}" for name, column in value.items())
            raise UserError(f"the columns of {piece.path} differ in length ({sizes})", "make them equally long")
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        yield from _read_lines(piece, columns)
        return
    _require(piece.path, columns, sorted({name for row in value for name in row}))
    for start in range(0, len(value), BATCH_ROWS):
        yield [*value[start : start + BATCH_ROWS]]


def _read_csv(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    from pyarrow import csv as pa_csv

    options = pa_csv.ParseOptions(delimiter="\t" if piece.kind.startswith("tsv") else ",", newlines_in_values=True)
    blocks = pa_csv.ReadOptions(block_size=LONG_LINE_BYTES, use_threads=False)
    with _open(piece) as stream:
        table = pa_csv.read_csv(stream, blocks, options)
    wanted = _require(piece.path, columns, table.column_names)
    for batch in table.select(wanted or table.column_names).to_batches(BATCH_ROWS):
        yield batch.to_pylist()


# Parquet and `save_to_disk` folders.


def _cut_parquet(path: Path, size_bytes: int) -> list[Piece]:
    import pyarrow.parquet as pq  # imported where needed: it takes longer than grading a small file

    try:
        metadata = pq.read_metadata(path)
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    whole = hash_file(path)
    pieces, start, held = [], 0, 0
    for index, size in enumerate(sizes, start=1):
        held += size
        if held >= size_bytes or index == len(sizes):
            digest = hash_bytes(f"{whole}:{start}:{index}".encode())
            pieces.append(Piece(path, "parquet", start, index, digest, held))
            start, held = index, 0
    return pieces


def _read_parquet(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(piece.path, memory_map=True, page_checksum_verification=True) as file:
            wanted = _require(piece.path, columns, file.schema_arrow.names)
            groups = list(range(file.num_row_groups))[piece.start : piece.stop]
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=wanted, use_threads=False):
                yield batch.to_pylist()
    except (ValueError, OSError) as error:
        raise _unreadable(piece.path, error) from error


def _cut_arrow(folder: Path, size_bytes: int) -> list[Piece]:
    from datasets import Dataset

    try:
        dataset = Dataset.load_from_disk(str(folder))
    except (ValueError, OSError) as error:
        raise _unreadable(folder, error) from error
    rows = len(dataset)
    if rows == 0:
        return []
    whole = hash_bytes("".join(hash_file(file) for file in sorted(folder.iterdir()) if file.is_file()).encode())
    row_bytes = dataset.data.nbytes / max(dataset.data.num_rows, 1)
    cuts = [*range(0, rows, max(1, round(size_bytes / max(row_bytes, 1)))), rows]
    pieces = []
    for first, last in pairwise(cuts):
        digest = hash_bytes(f"{whole}:{first}:{last}".encode())
        pieces.append(Piece(folder, "arrow", first, last, digest, round((last - first) * row_bytes)))
    return pieces


def _read_arrow(piece: Piece, columns: Sequence[str] | None) -> Iterator[list[Row]]:
    from datasets import Dataset

    dataset = Dataset.load_from_disk(str(piece.path)).with_format(None)
    if (wanted := _require(piece.path, columns, dataset.column_names)) is not None:
        dataset = dataset.select_columns(wanted)
    try:
        for start in range(len(dataset))[piece.start : piece.stop : BATCH_ROWS]:
            batch: Any = dataset[start : min(start + BATCH_ROWS, piece.stop or len(dataset))]
            yield [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    except (ValueError, OSError) as error:
        raise _unreadable(piece.path, error) from error
