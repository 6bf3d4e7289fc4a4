"""Files cut into pieces and read back, whole and damaged."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from ladle.data import rows
from ladle.data.files import DataFile
from ladle.data.rows import Piece, Unreadable, cut_file, read_piece, read_rows
from ladle.errors import UserError

ROWS = [{"text": f'row {i},\t"— 行"\n' + "x" * (i * 7 % 50), "n": str(i)} for i in range(500)]


def write_jsonl(path: Path) -> None:
    path.write_bytes(encode_jsonl())


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def write_compressed(compress: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(compress(encode_jsonl()))

    return write


def write_table_of_text(delimiter: str, compress: Callable[[bytes], bytes] = bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter).writerows([ROWS[0].keys(), *(row.values() for row in ROWS)])
        path.write_bytes(compress(text.getvalue().encode()))

    return write


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def write_columns(path: Path) -> None:
    path.write_text(json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}, indent=1))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=60)


def write_arrow(path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(path)


def encode_jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


FORMATS: dict[str, Callable[[Path], None]] = {
    "jsonl": write_jsonl,
    "jsonl.gz": write_compressed(gzip.compress),
    "jsonl.zst": write_compressed(zstd),
    "jsonl.xz": write_compressed(lzma.compress),
    "jsonl.bz2": write_compressed(bz2.compress),
    "json": write_json,
    "csv": write_table_of_text(","),
    "tsv": write_table_of_text("\t"),
    "csv.zst": write_table_of_text(",", zstd),
    "parquet": write_parquet,
    "arrow": write_arrow,
}


@pytest.fixture(params=FORMATS)
def data_file(request: pytest.FixtureRequest, tmp_path: Path) -> DataFile:
    FORMATS[request.param](tmp_path / "data")
    return DataFile(tmp_path / "data", request.param)


def read_all(pieces: list[Piece], columns: list[str] | None = None) -> list[Any]:
    return [row for piece in pieces for row in read_piece(piece, columns)]


@pytest.mark.parametrize("size_bytes", [1, 700, 5000, 10**9])
def test_pieces_of_any_size_hold_every_row_once_in_order(data_file: DataFile, size_bytes: int):
    assert read_all(cut_file(data_file, size_bytes)) == ROWS


def test_rows_of_a_small_dataset_are_those_of_its_pieces(tmp_path: Path):
    for kind, write in FORMATS.items():
        path = tmp_path / f"data.{kind}"
        write(path)
        assert list(read_rows([path])) == ROWS, kind
    write_jsonl(tmp_path / "lines.json")
    write_columns(tmp_path / "columns.json")
    assert list(read_rows([tmp_path / "lines.json", tmp_path / "columns.json"])) == ROWS + ROWS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"line 3 of .*a.jsonl is not JSON \("),
        (b"[1]", "line 3 of .*a.jsonl is not a JSON object"),
        (b'"\xff"', r"line 3 of .*a.jsonl is not UTF-8 \("),
    ],
)
def test_a_bad_line_of_a_small_dataset_is_refused(tmp_path: Path, line: bytes, message: str):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        list(read_rows([tmp_path / "a.jsonl"]))


def test_columns_of_different_length_are_refused(tmp_path: Path):
    (tmp_path / "uneven.json").write_text(json.dumps({"prompt": ["a"], "completion": []}))
    with pytest.raises(UserError, match=r"differ in length \(prompt 1, completion 0\)"):
        list(read_rows([tmp_path / "uneven.json"]))


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
    assert rows[:2] == [{"n": "0"}, {"n": "1"}]


def test_a_selection_of_a_saved_dataset_is_honoured(tmp_path: Path):
    Dataset.from_list(ROWS).select([5, 3, 400]).save_to_disk(tmp_path / "data")
    assert [row["n"] for row in read_all(cut_file(DataFile(tmp_path / "data", "arrow"), 10**9))] == ["5", "3", "400"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_missing_column_names_those_there_are(tmp_path: Path, kind: str):
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


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "jsonl.xz", "jsonl.bz2", "csv.zst"])
@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_truncated_stream_is_refused(tmp_path: Path, kind: str, kept: float):
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
