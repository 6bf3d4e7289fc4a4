"""Files cut into pieces and read back, whole and damaged."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from ladle.data.sources import rows
from ladle.data.sources.files import DataFile, Kind
from ladle.data.sources.pieces import Piece, cut_file
from ladle.data.sources.rows import Unreadable, read_rows
from ladle.errors import UserError

ROWS = [{"text": f"row {i} — 行" + "x" * (i * 7 % 50), "n": i} for i in range(500)]


def write_jsonl(path: Path) -> None:
    path.write_bytes(encode_jsonl())


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(encode_jsonl()))


def write_zstd(path: Path) -> None:
    path.write_bytes(pa.compress(encode_jsonl(), "zstd", asbytes=True))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=60)


def write_arrow(path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(path)


def encode_jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


FORMATS: dict[Kind, Callable[[Path], None]] = {
    "jsonl": write_jsonl,
    "jsonl.gz": write_gzip,
    "jsonl.zst": write_zstd,
    "parquet": write_parquet,
    "arrow": write_arrow,
}


@pytest.fixture(params=FORMATS)
def data_file(request: pytest.FixtureRequest, tmp_path: Path) -> DataFile:
    FORMATS[request.param](tmp_path / "data")
    return DataFile(tmp_path / "data", request.param)


def read_all(pieces: list[Piece], columns: list[str] | None = None) -> list[Any]:
    return [row for piece in pieces for batch in read_rows(piece, columns) for row in batch]


@pytest.mark.parametrize("size_bytes", [1, 700, 5000, 10**9])
def test_pieces_of_any_size_hold_every_row_once_in_order(data_file: DataFile, size_bytes: int):
    assert read_all(cut_file(data_file, size_bytes)) == ROWS


def test_pieces_are_cut_where_the_format_allows(data_file: DataFile):
    pieces = cut_file(data_file, 4000)
    assert (len(pieces) > 3) == (data_file.kind in ("jsonl", "parquet", "arrow"))
    assert len({piece.digest for piece in pieces}) == len(pieces)


def test_a_piece_is_named_by_its_content(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(encode_jsonl())
    longer = encode_jsonl() + b'{"text": "one more"}\n'
    (tmp_path / "c.jsonl").write_bytes(longer)
    a, b, c = (
        [piece.digest for piece in cut_file(DataFile(tmp_path / name, "jsonl"), 2000)]
        for name in ("a.jsonl", "b.jsonl", "c.jsonl")
    )
    assert a == b
    assert a[:-1] == c[: len(a) - 1]
    assert a != c


def test_only_the_wanted_columns_are_read(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet")
    rows = read_all(cut_file(DataFile(tmp_path / "a.parquet", "parquet"), 10**9), ["n"])
    assert rows[:2] == [{"n": 0}, {"n": 1}]


def test_a_selection_of_a_saved_dataset_is_honoured(tmp_path: Path):
    Dataset.from_list(ROWS).select([5, 3, 400]).save_to_disk(tmp_path / "data")
    assert [row["n"] for row in read_all(cut_file(DataFile(tmp_path / "data", "arrow"), 10**9))] == [5, 3, 400]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_a_missing_column_names_those_there_are(tmp_path: Path, kind: Kind):
    FORMATS[kind](tmp_path / "data")
    with pytest.raises(UserError, match=r"data has no column content \(its columns: (text, n|n, text)\)"):
        read_all(cut_file(DataFile(tmp_path / "data", kind), 10**9), ["content"])


def test_bad_lines_keep_their_place(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "a"}\n{"text": \n\n   \n"just text"\n{"text": "\xff"}\n{"text": "last, without a line end"}'
    )
    assert read_all(cut_file(DataFile(path, "jsonl"), 10), ["text"]) == [
        {"text": "a"},
        Unreadable("bad_json"),
        Unreadable("not_an_object"),
        Unreadable("bad_utf8"),
        {"text": "last, without a line end"},
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "é中\U0001f600 \\n \\" \\\\", "n": [1, {"ключ": "значение"}]}',
        '{"text": "\\u4e2d \\ud83d\\ude00 é"}',
        '{"text": "\\u4e2d ascii"}',
        '{"text": "é',
        '"é"',
    ],
)
def test_long_lines_are_read_as_short_ones_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line.encode() + b'\n{"text": "\xe9"}\n')
    pieces = cut_file(DataFile(path, "jsonl"), 10**9)
    short = read_all(pieces)
    monkeypatch.setattr(rows, "LONG_LINE_BYTES", 0)
    assert read_all(pieces) == short
    assert short[1] == Unreadable("bad_utf8")


def test_a_lone_surrogate_in_a_long_line_is_bad_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "lone \\ud800"}\n')
    monkeypatch.setattr(rows, "LONG_LINE_BYTES", 0)
    assert read_all(cut_file(DataFile(path, "jsonl"), 10**9)) == [Unreadable("bad_utf8")]


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_truncated_stream_is_refused(tmp_path: Path, kind: Kind, kept: float):
    path = tmp_path / "data"
    FORMATS[kind](path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UserError, match="data cannot be read: .*fetch the file again"):
        read_all(cut_file(DataFile(path, kind), 10**9))


@pytest.mark.parametrize("damage", ["no footer", "body overwritten", "not parquet"])
def test_corrupt_parquet_is_refused(tmp_path: Path, damage: str):
    path = tmp_path / "data.parquet"
    write_parquet(path)
    content = bytearray(path.read_bytes())
    if damage == "no footer":
        content = content[:-100]
    elif damage == "body overwritten":
        content[100 : len(content) // 2] = b"\xff" * (len(content) // 2 - 100)
    else:
        content = bytearray(b"text")
    path.write_bytes(content)
    with pytest.raises(UserError, match="data.parquet cannot be read: .*fetch the file again"):
        read_all(cut_file(DataFile(path, "parquet"), 10**9))


def test_a_corrupt_saved_dataset_is_refused(tmp_path: Path):
    write_arrow(tmp_path / "data")
    arrow = next((tmp_path / "data").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        read_all(cut_file(DataFile(tmp_path / "data", "arrow"), 10**9))


def test_an_empty_file_has_no_pieces(tmp_path: Path):
    (tmp_path / "a.jsonl").touch()
    assert cut_file(DataFile(tmp_path / "a.jsonl", "jsonl"), 10) == []
