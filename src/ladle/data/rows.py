"""The one reader of rows: JSON lines, JSON, CSV, TSV, parquet and `save_to_disk` folders, compressed ones too.

`scan_rows` yields the rows of a split with an `Unreadable` in the place of each bad one, for those who count them;
`read_rows` stops at the first. Mixtures read piece by piece: `cut_file` cuts a file into pieces of about the same
size, at places that only the data decides, and `read_piece` yields a piece's rows. A piece is the unit of tokenizing:
named by the hash of its content, worked by one worker, kept as one token shard. Plain JSON lines are cut at line ends,
parquet between row groups, `save_to_disk` folders between rows. Any other file is one piece; a JSON file that is one
value is held in memory whole.

Text is UTF-8, with or without a byte order mark. Every cell of a CSV or TSV file is text as it is written, an empty one
is None. In parquet and Arrow, a key of a nested struct that is null is left out, as TRL does: all structs of a column
have the same keys there, and a null looks the same as a key that was never written.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import filterfalse, islice, pairwise, takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ladle.artifacts.files import hash_bytes, hash_file
from ladle.data.files import DataFile, find_data_files
from ladle.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH_ROWS = 256
BUFFER_BYTES = 2**20
LONG_LINE_BYTES = 2**24
# Levels of lists and objects in a row; what walks through rows recursively breaks at some hundreds.
MOST_LEVELS = 100
# Rows of JSON lines of which one at least has the columns that are needed.
FIRST_ROWS = 100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Half of a pair of code units: not a character, and UTF-8 cannot hold it.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_PROBLEMS = {
    "bad_json": ("is not JSON", "fix or remove it"),
    "bad_utf8": ("is not UTF-8", "save the file as UTF-8"),
    "not_an_object": ("is not a JSON object", 'write a row as {"column": value, ...}'),
    "ragged": ("has more or fewer cells than the header", "quote cells that hold a separator or a line break"),
}


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read."""

    reason: str
    detail: str = field(default="", compare=False)


Row = dict[str, Any] | Unreadable
Columns = Sequence[str] | None


@dataclass(frozen=True)
class Piece:
    """A run of rows in one file, or all of them.

    Attributes:
        path: the file.
        kind: what it is, as of a `DataFile`.
        start: first byte (jsonl), row group (parquet) or row (arrow).
        stop: one past the last; None for the rest of the file.
        digest: hash of the content.
        size_bytes: about how much there is to read.
    """

    path: Path
    kind: str
    start: int = 0
    stop: int | None = None
    digest: str = ""
    size_bytes: int = 0


def read_rows(paths: Sequence[Path], split: str = "train") -> Iterator[dict[str, Any]]:
    """Yield the rows of a split, in order.

    Raises:
        UserError: no such file or split, a damaged file, or a row that cannot be read.
    """
    return (row for _, row in read_placed_rows(paths, split))


def read_placed_rows(
    paths: Sequence[Path], split: str = "train", any_text: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a split, each with its place for error messages: `line 3 of FILE`, or `row 3 of FILE`.

    Args:
        paths: files and folders.
        split: split to look for in folders.
        any_text: let JSON lines hold half of a surrogate pair, which is not text and cannot be written to a file.

    Raises:
        UserError: as `read_rows`.
    """
    for place, row in scan_rows(paths, split, any_text):
        if isinstance(row, Unreadable):
            problem, fix = _PROBLEMS[row.reason]
            raise UserError(f"{place} {problem}" + (f" ({row.detail})" if row.detail else ""), fix)
        yield place, row


def scan_rows(paths: Sequence[Path], split: str = "train", any_text: bool = False) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a split, each with its place; a bad row comes as an `Unreadable`, to be counted by its reason.

    Args and errors are those of `read_placed_rows`, but for bad rows.
    """
    for file in find_data_files(paths, split):
        whole, unit = Piece(file.path, file.kind), "row"
        rows = enumerate(read_piece(whole), start=1)
        if file.kind.startswith("jsonl"):
            lines = enumerate(_lines(whole), start=1)
            rows = ((n, _parse(line, () if any_text else None)) for n, line in lines if not _is_blank(line))
            unit = "line"
        yield from ((f"{unit} {number} of {file.path}", row) for number, row in rows)


def take_rows(dataset: str, paths: Sequence[Path], split: str, first: int, limit: int | None) -> list[dict[str, Any]]:
    """Return `limit` rows from number `first` on, starting over past the last one; all of them where limit is unset.

    Raises:
        UserError: the split is empty.
    """
    rows = list(read_rows(paths, split))
    if not rows:
        raise UserError(f"{dataset} holds no problems in split {split!r}", "name another dataset or split")
    return [rows[number % len(rows)] for number in range(first, first + (limit or len(rows)))]


def cut_file(file: DataFile, size_bytes: int) -> list[Piece]:
    """Return the pieces of a file, each of about `size_bytes`.

    Raises:
        UserError: the file cannot be opened as what its name says.
    """
    if cut := {"jsonl": _cut_lines, "parquet": _cut_parquet, "arrow": _cut_arrow}.get(file.kind):
        return [*cut(file.path, size_bytes)]
    return [Piece(file.path, file.kind, digest=hash_file(file.path), size_bytes=file.path.stat().st_size)]


def read_piece(piece: Piece, columns: Columns = None, optional: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a piece, in order.

    Args:
        piece: what to read.
        columns: columns needed; None for all of them. A row of text may hold others too.
        optional: columns to read as well where the file has them.

    Raises:
        UserError: a column that does not exist, or a damaged file.
    """
    read = {"parquet": _read_parquet, "arrow": _read_arrow, "csv": _read_csv, "tsv": _read_csv, "json": _read_json}
    return read.get(piece.kind.partition(".")[0], _read_lines)(piece, columns, optional)


@contextlib.contextmanager
def _damage_named(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn what libraries raise on a damaged file (a last frame cut short, say) into one message."""
    try:
        yield
    except UserError:
        raise
    except (EOFError, zlib.error, lzma.LZMAError, ValueError, OSError, *errors) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "fetch the file again, or take it out of the source"
        raise UserError(f"{path} cannot be read: {reason}", fix) from error


def _choose_columns(path: Path, columns: Columns, optional: Sequence[str], present: Sequence[str]) -> list[str]:
    """Return the columns to read, after checking that a file has them and none twice."""
    if twice := sorted({name for name in present if present.count(name) > 1}):
        raise UserError(f"{path} has two columns named {twice[0]!r}", "rename one of them")
    if columns is None:
        return [*present]
    if missing := [column for column in columns if column not in present]:
        problem = f"{path} has no column {', '.join(missing)} (its columns: {', '.join(present) or 'none'})"
        raise UserError(problem, "set the source's `text`, `messages`, `input_ids` or `template` to a column it has")
    return [*columns, *(name for name in optional if name in present and name not in columns)]


# JSON lines. A document may fill a good part of memory: none of the iterators here keeps a line that it handed on.


def _cut_lines(path: Path, size_bytes: int) -> Iterator[Piece]:
    size, start = path.stat().st_size, 0
    with path.open("rb") as stream:
        while start < size:
            stop = size
            if start + size_bytes < size:  # where the first line that begins at or after it begins
                stream.seek(start + size_bytes - 1)
                stream.readline()
                stop = min(stream.tell(), size)
            stream.seek(start)
            yield Piece(path, "jsonl", start, stop, hash_bytes(stream.read(stop - start)), stop - start)
            start = stop


def _read_lines(piece: Piece, columns: Columns, optional: Sequence[str]) -> Iterator[Row]:
    rows = map(partial(_parse, columns=columns), filterfalse(_is_blank, _lines(piece)))
    names: set[str] = set()
    for row in islice(rows, FIRST_ROWS):
        yield row
        if isinstance(row, dict):
            names |= row.keys()
            if row.keys() >= {*(columns or ())}:
                break
    else:  # single rows without the columns are counted as bad later
        if names:
            _choose_columns(piece.path, columns, optional, sorted(names))
    yield from rows


def _lines(piece: Piece) -> Iterator[bytes]:
    with _open(piece) as stream:
        if piece.start:
            stream.seek(piece.start)
        lines, stop = iter(stream.readline, b""), piece.stop
        yield from lines if stop is None else takewhile(lambda line: stream.tell() - len(line) < stop, lines)


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
def _open(piece: Piece) -> Iterator[IO[bytes]]:
    """Open a file for reading what it holds once it is decompressed."""
    with _damage_named(piece.path), contextlib.ExitStack() as stack:
        raw = stack.enter_context(io.BufferedReader(piece.path.open("rb", buffering=0), BUFFER_BYTES))
        yield stack.enter_context(_DECOMPRESS[piece.kind.partition(".")[2]](raw))


def _is_blank(line: bytes) -> bool:
    return line.isspace() or (len(line) <= 5 and not line.removeprefix(BYTE_ORDER_MARK).strip())


def _parse(line: bytes, columns: Columns = None) -> Row:
    """Return the row that a line holds; only the text of the columns named has to be valid."""
    return _as_row(_parse_json(line), columns, *_suspicions(line))


def _suspicions(text: bytes) -> tuple[bool, bool]:
    """Tell whether JSON may be nested too deeply, and whether one of its escapes may be half of a surrogate pair, which
    is found in long lines when their strings are decoded."""
    may_hold_surrogates = len(text) <= LONG_LINE_BYTES and (b"\\ud" in text or b"\\uD" in text)
    return text.count(b"[") + text.count(b"{") > MOST_LEVELS, may_hold_surrogates


def _as_row(value: Any, columns: Columns, may_be_deep: bool, may_hold_surrogates: bool) -> Row:
    """Return a JSON value as a row, or why it is none."""
    if not isinstance(value, dict):
        return value if isinstance(value, Unreadable) else Unreadable("not_an_object")
    if may_be_deep and any(map(_is_deep, value.values())):
        return Unreadable("bad_json", "it is nested too deeply")
    if may_hold_surrogates:
        used = value if columns is None else {name: value[name] for name in columns if name in value}
        if LONE_SURROGATE.search(json.dumps(used, ensure_ascii=False)):
            return Unreadable("bad_utf8", "it holds half of a surrogate pair")
    return value


def _is_deep(value: Any, levels: int = MOST_LEVELS) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deep(item, levels - 1) for item in items)


def _parse_json(text: bytes) -> Any:
    """Return a JSON value, or an `Unreadable` for what is not one."""
    text = text.removeprefix(BYTE_ORDER_MARK)
    try:
        return _parse_long(text) if len(text) > LONG_LINE_BYTES else _DECODER.decode(text.decode("utf-8"))
    except UnicodeError as error:
        return Unreadable("bad_utf8", str(error))
    except RecursionError:
        return Unreadable("bad_json", "it is nested too deeply")
    except ValueError as error:
        if b"\0" in text:
            return Unreadable("bad_utf8", "it holds NUL bytes, as UTF-16 does")
        return Unreadable("bad_json", str(error))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is written twice in one object")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parse_long(line: bytes) -> Any:
    """Parse a line of JSON without holding it twice at four bytes a character, which one emoji is enough for.

    Bytes past ASCII are passed through the parser as surrogates, two bytes each, and decoded string by string.
    """
    return _decode_strings(_DECODER.decode(line.decode("ascii", "surrogateescape")))


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


def _read_json(piece: Piece, columns: Columns, optional: Sequence[str]) -> Iterator[Row]:
    """Read one JSON value, a list of rows or lists by column; a file that is not that is read as JSON lines."""
    with _open(piece) as stream:
        lines = filterfalse(_is_blank, stream)
        first, second = next(lines, b""), next(lines, b"")
    value, text = None, b""
    if not second or not isinstance(_parse_json(first), dict):
        with _open(piece) as stream:
            text = stream.read()
        value = _parse_json(text)
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            sizes = ", ".join(f"{name} {len(column)}" for name, column in value.items())
            raise UserError(f"the columns of {piece.path} differ in length ({sizes})", "make them equally long")
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if isinstance(value, list):
        suspicions = _suspicions(text)
        rows = [_as_row(row, columns, *suspicions) for row in value]
        names = sorted({name for row in rows if isinstance(row, dict) for name in row})
        _choose_columns(piece.path, columns, optional, names)
        yield from rows
    else:
        yield from _read_lines(piece, columns, optional)


def _read_csv(piece: Piece, columns: Columns, optional: Sequence[str]) -> Iterator[Row]:
    """Read a table of text as Python's csv does; an empty cell is None, and a row of other length than the header is
    bad."""
    csv.field_size_limit(sys.maxsize)  # a cell may hold a document
    with _open(piece) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")  # bad bytes are found row by row
        reader = csv.reader(text, delimiter="\t" if piece.kind.startswith("tsv") else ",", strict=True)
        header, line = [], 1
        try:
            for cells in filter(None, reader):
                if header:
                    yield _row_of_cells(header, cells)
                elif not _is_text(cells) or any("\0" in name for name in cells):
                    raise UserError(f"the first line of {piece.path} is not UTF-8", "save the file as UTF-8")
                else:
                    _choose_columns(piece.path, columns, optional, header := cells)
                line = reader.line_num + 1
        except csv.Error as error:
            fix = "close its quotes, and double a quote inside of them"
            raise UserError(f"the row at line {line} of {piece.path} is not a row of cells: {error}", fix) from error


def _row_of_cells(header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Unreadable("ragged", f"{len(cells)} and {len(header)}")
    row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
    return row if _is_text(cells) else Unreadable("bad_utf8")


def _is_text(cells: Iterable[str]) -> bool:
    """Tell whether the cells hold text alone, not bytes passed through."""
    return LONE_SURROGATE.search("".join(cells)) is None


# Parquet and `save_to_disk` folders.


# In the name of an Arrow type whose values are not those that JSON would hold.
_UNLIKE_JSON = re.compile("struct|date|time|duration|decimal")


def _plain_rows(rows: list[dict[str, Any]], schema: pa.Schema) -> list[dict[str, Any]]:
    for name in (column.name for column in schema if _UNLIKE_JSON.search(str(column.type))):
        for row in rows:
            if name in row:
                row[name] = _plain(row[name])
    return rows


def _plain(value: Any) -> Any:
    """Leave out the nulls that Arrow adds to align structs; write dates, times and decimals as text."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bytes)) else str(value)


def _cut_parquet(path: Path, size_bytes: int) -> Iterator[Piece]:
    import pyarrow.parquet as pq  # imported where needed: it takes longer than grading a small file

    with _damage_named(path):
        metadata = pq.read_metadata(path)
    whole, start, held = hash_file(path), 0, 0
    for stop in range(1, metadata.num_row_groups + 1):
        held += metadata.row_group(stop - 1).total_byte_size
        if held >= size_bytes or stop == metadata.num_row_groups:
            yield Piece(path, "parquet", start, stop, hash_bytes(f"{whole}:{start}:{stop}".encode()), held)
            start, held = stop, 0


def _read_parquet(piece: Piece, columns: Columns, optional: Sequence[str]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with (
        _damage_named(piece.path),
        pq.ParquetFile(piece.path, memory_map=True, page_checksum_verification=True) as file,
    ):
        wanted = _choose_columns(piece.path, columns, optional, file.schema_arrow.names)
        groups = list(range(file.num_row_groups))[piece.start : piece.stop]
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=wanted, use_threads=False):
            yield from _plain_rows(batch.to_pylist(), batch.schema)


def _load_saved(folder: Path) -> Dataset:
    from datasets import Dataset

    with _damage_named(folder, LookupError, TypeError, AttributeError, RuntimeError):
        return Dataset.load_from_disk(str(folder)).with_format(None)  # plain values, whatever it was saved to give


def _cut_arrow(folder: Path, size_bytes: int) -> Iterator[Piece]:
    dataset = _load_saved(folder)
    rows = len(dataset)
    whole = hash_bytes("".join(hash_file(file) for file in sorted(folder.iterdir()) if file.is_file()).encode())
    row_bytes = dataset.data.nbytes / max(dataset.data.num_rows, 1)
    for first, last in pairwise([*range(0, rows, max(1, round(size_bytes / max(row_bytes, 1)))), rows]):
        digest = hash_bytes(f"{whole}:{first}:{last}".encode())
        yield Piece(folder, "arrow", first, last, digest, round((last - first) * row_bytes))


def _read_arrow(piece: Piece, columns: Columns, optional: Sequence[str]) -> Iterator[Row]:
    dataset: Any = _load_saved(piece.path)
    dataset = dataset.select_columns(_choose_columns(piece.path, columns, optional, dataset.column_names))
    with _damage_named(piece.path):
        for batch in dataset.select(range(len(dataset))[piece.start : piece.stop]).iter(BATCH_ROWS):
            rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
            yield from _plain_rows(rows, dataset.features.arrow_schema)
