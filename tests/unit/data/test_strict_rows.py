"""What the reader takes for a row, against Python's csv and json and TRL; what it refuses, and how it counts."""

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

from ladle.data import fetch
from ladle.data.rows import Unreadable, read_rows, scan_rows
from ladle.errors import UserError
from ladle.models.config import InitModelConfig, TokenizerSource

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def read(path: Path, content: bytes) -> list[dict[str, Any]]:
    path.write_bytes(content)
    return list(read_rows([path]))


def reasons(path: Path, content: bytes) -> list[str | None]:
    path.write_bytes(content)
    return [row.reason if isinstance(row, Unreadable) else None for _, row in scan_rows([path])]


@pytest.mark.parametrize(
    "text",
    [
        "q,zip,rating\nzip?,02139,up\nx,0.50,+1\ny,1000000,-1\nz,1e5,0\n",
        "q,a\na,N/A\nb,null\nc,true\nd,None\ne,NaN\n",
        'q,a\n"two\nlines, and ""quotes""",1\r\n"a\r\nb",2\r\n',
        "q,a\r1,x\r2,y\r",
        "q,a\nseparators \x1c \x85 \u2028 \x0b,1\n",
        "q,a\n\n1,  padded  \n\n\n",
        "\ufeffq,a\nä,1\n",
        ",q\n0,an index without a name\n",
        "q,a\n" + "x" * 300_000 + ",1\n",
        "q,a\n" + '"line\nbreak",1\n' * 40_000,
        "q,a\n",
        "",
    ],
    ids=lambda text: repr(text[:20]),
)
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_a_csv_is_the_text_that_pythons_csv_reads(tmp_path: Path, text: str, compression: str):
    expected = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True))
    assert read(tmp_path / f"a.csv{compression}", COMPRESSIONS[compression](text.encode())) == expected
    assert read(tmp_path / "a.tsv", text.replace(",", "\t").encode()) == [
        {key.replace(",", "\t"): value.replace(",", "\t") for key, value in row.items()} for row in expected
    ]


def test_an_empty_cell_is_null_and_a_ragged_or_broken_row_is_counted(tmp_path: Path):
    content = b"q,a\nx,\n1,2,3\n1\n\xe9,2\nlast,row\n"
    assert reasons(tmp_path / "a.csv", content) == [None, "ragged", "ragged", "bad_utf8", None]
    assert [row for _, row in scan_rows([tmp_path / "a.csv"])][0] == {"q": "x", "a": None}
    with pytest.raises(UserError, match=r"row 2 of .*a.csv has more or fewer cells than the header \(3 and 2\)"):
        list(read_rows([tmp_path / "a.csv"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'q,a\nx,1\n"open,2\ny,3\n', "the row at line 3 of .*a.csv is not a row of cells: unexpected end of data"),
        (b'q,a\n"x"y,1\n', "the row at line 2 of .*a.csv is not a row of cells: ',' expected after"),
        (b"q,q\n1,2\n", "a.csv has two columns named 'q'"),
        ("q,a\nä,1\n".encode("utf-16"), "the first line of .*a.csv is not UTF-8"),
        ("q,a\nä,1\n".encode("utf-16-le"), "the first line of .*a.csv is not UTF-8"),
        (b"q\xe9,a\n1,2\n", "the first line of .*a.csv is not UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_read_row_by_row_is_refused(tmp_path: Path, content: bytes, message: str):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv", content)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "q \\ud83d"}', "bad_utf8"),
        (b'{"text": "q \\uD83D!"}', "bad_utf8"),
        (b'{"\\udc00": 1}', "bad_utf8"),
        (b'{"text": "\\ud83d\\ude00"}', None),
        ('{"text": "é"}'.encode("latin-1"), "bad_utf8"),
        ('{"text": "é"}'.encode("utf-16"), "bad_utf8"),
        ('{"text": "e"}'.encode("utf-16-be"), "bad_utf8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad_json"),
        (b'{"a": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}", "bad_json"),
        (b'{"a": [' + b"[1]," * 300 + b"[1]]}", None),
        (b'{"a": 1, "a": 2}', "bad_json"),
        (b'{"m": [{"role": "user", "role": "assistant"}]}', "bad_json"),
        (b'{"a": 1},', "bad_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad_json"),
        (b'{"a": 1}{"a": 2}', "bad_json"),
        (b'"text"', "not_an_object"),
        (b'\xef\xbb\xbf{"a": 1}', None),
        (b'{"a": "\\u0000\\u2028 \x7f"}', None),
    ],
)  # fmt: skip
def test_a_line_is_a_row_or_is_counted(tmp_path: Path, line: bytes, reason: str | None):
    expected = [None, reason, None]
    assert reasons(tmp_path / "a.jsonl", b'{"a": 1}\r\n\n' + line.replace(b"\n", b"") + b'\n{"b": 2}') == expected


def test_a_byte_order_mark_costs_no_row(tmp_path: Path):
    mark = b"\xef\xbb\xbf"
    assert read(tmp_path / "a.jsonl", mark + b'{"a": 1}\n' + mark + b'{"a": 2}') == [{"a": 1}, {"a": 2}]
    assert read(tmp_path / "a.json", mark + b'[{"a": 1}]') == [{"a": 1}]
    assert read(tmp_path / "a.jsonl", mark) == read(tmp_path / "a.json", mark + b"\n") == []


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[{"a": 1}, 5, {"a": "\\ud800"}]', [{"a": 1}, "not_an_object", "bad_utf8"]),
        ('[{"a": 1},\n {"a": 2}\n]\n', [{"a": 1}, {"a": 2}]),
        ('{"a": [1, 2],\n "b": [3, 4]}', [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ('{"a": 1}\n{bad\n{"a": 2}\n', [{"a": 1}, "bad_json", {"a": 2}]),
        ('[{"a": 1},]', ["bad_json"]),
        ('{"a": 1}', [{"a": 1}]),
        ("[]", []),
        ("", []),
    ],
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_json_is_a_list_columns_or_lines(tmp_path: Path, text: str, rows: list[Any], compression: str):
    path = tmp_path / f"a.json{compression}"
    path.write_bytes(COMPRESSIONS[compression](text.encode()))
    assert [row.reason if isinstance(row, Unreadable) else row for _, row in scan_rows([path])] == rows


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "JSON", "csv", "tsv"])
def test_every_form_of_archive_of_every_format_is_read(tmp_path: Path, kind: str, compression: str):
    halves = {"csv": [b"a,b\n1,", b"x\n"], "tsv": [b"a\tb\n1\t", b"x\n"]}.get(kind, [b'{"a": "1",', b'"b": "x"}\n'])
    path = tmp_path / f"rows.{kind}{compression}"
    assert read(path, b"".join(map(COMPRESSIONS[compression], halves))) == [{"a": "1", "b": "x"}]  # of several members
    if compression:
        with pytest.raises(UserError, match="cannot be read: .*fetch the file again"):
            read(path, path.read_bytes()[:-3])


def test_nulls_that_arrow_adds_to_align_structs_are_left_out_as_trl_does(tmp_path: Path):
    from trl.trainer.utils import remove_none_values

    turns = [{"role": "user", "content": "w?"}, {"role": "assistant", "content": "", "tool_calls": [{"zip": "02139"}]}]
    rows = [{"messages": turns, "label": None}, {"messages": turns[:1], "label": True}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    aligned = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert aligned != [row | {"messages": remove_none_values(row["messages"])} for row in aligned] == rows
    for path in (tmp_path / "saved", tmp_path / "a.parquet"):
        assert list(read_rows([path])) == rows


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas"])
def test_a_saved_dataset_gives_plain_values_whatever_its_format(tmp_path: Path, form: str):
    rows = [{"label": True, "ids": [1, 2]}, {"label": False, "ids": [3]}]
    Dataset.from_list(rows).with_format(form).save_to_disk(tmp_path / "saved")
    read = list(read_rows([tmp_path / "saved"]))
    assert read == rows
    assert [type(row["label"]) for row in read] == [bool, bool]


def test_dates_and_decimals_of_parquet_are_text(tmp_path: Path):
    from datetime import date
    from decimal import Decimal

    table = pa.Table.from_pylist([{"day": date(2024, 1, 31), "price": Decimal("1.50"), "n": 2}])
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_rows([tmp_path / "a.parquet"])) == [{"day": "2024-01-31", "price": "1.50", "n": 2}]


def test_two_columns_of_a_name_in_parquet_are_refused(tmp_path: Path):
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="two columns named 'text'"):
        list(read_rows([tmp_path / "a.parquet"]))


def test_a_tokenizer_is_trained_on_text_alone(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    config = InitModelConfig(architecture={}, train_tokenizer=TokenizerSource(dataset="a.jsonl"))
    with pytest.raises(UserError, match=r"line 2 of .*a.jsonl has no text in column 'text' \(it has body\)"):
        fetch.run(config, {"tokenizer_data": [tmp_path / "a.jsonl"]}, tmp_path)


def test_places_and_reasons_are_those_of_the_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n{bad\n' + json.dumps({"a": 2}).encode())
    assert [place.split()[:2] for place, _ in scan_rows([tmp_path / "a.jsonl"])] == [["line", n] for n in "134"]
