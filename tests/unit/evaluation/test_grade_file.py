from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ladle.errors import UserError
from ladle.evaluation.rescore import grade_file


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_same_rows_in_order_with_verdicts(tmp_path: Path) -> None:
    rows = [
        {"gold": "1/2", "answer": "0.5", "id": 7},
        {"gold": "5", "answer": "six"},
        {"gold": 18, "answer": 18.0, "type": "int"},
        {"gold": "4.2", "answer": "4.25", "tolerance": 0.1, "unit": "%", "note": "é"},
        {"gold": "1,2", "answer": "2, 1", "multiple": True},
        {"gold": "1", "answer": "(("},
        {"gold": "1", "answer": None},
    ]
    out = tmp_path / "verdicts.jsonl"
    counts = grade_file(write(tmp_path / "pairs.jsonl", *rows), out)
    graded = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["verdict"] for row in graded] == ["correct", "wrong", "correct", "correct", "correct"] + [
        "unparsed"
    ] * 2
    for row, verdict in zip(rows, graded, strict=True):
        assert {name: verdict[name] for name in row} == row
        assert set(verdict) - set(row) == {"verdict", "reason", "seconds"}
    assert counts == {"correct": 4, "wrong": 1, "unparsed": 2, "timeout": 0}
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("not json\n", "line 2 of .*pairs.jsonl is not JSON"),
        ("[1, 2]\n", "line 2 of .* is not a JSON object"),
        ({"gold": "1"}, "line 2 of .* has no 'answer'"),
        ({"answer": "1"}, "line 2 of .* has no 'gold'"),
        ({"gold": None, "answer": "1"}, "line 2 of .* has gold None"),
        ({"gold": "1", "answer": ["1"]}, r"line 2 of .* has answer \['1'\]"),
        ({"gold": "1", "answer": "1", "type": "nubmer"}, "line 2 of .* has type 'nubmer' .*use one of int"),
        ({"gold": "1", "answer": "1", "type": 3}, "line 2 of .* has type 3"),
        ({"gold": "1", "answer": "1", "tolerance": "big"}, "line 2 of .* has tolerance 'big'"),
        ({"gold": "1", "answer": "1", "tolerance": -0.1}, "line 2 of .* has tolerance -0.1"),
        ('{"gold": "1", "answer": "1", "tolerance": NaN}\n', "line 2 of .* has tolerance nan"),
        ({"gold": "1", "answer": "1", "tolerance": True}, "line 2 of .* has tolerance True"),
        ({"gold": "1", "answer": "1", "multiple": 1}, "line 2 of .* has multiple 1"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: Any, problem: str) -> None:
    pairs = write(tmp_path / "pairs.jsonl", {"gold": "1", "answer": "1"}, row)
    with pytest.raises(UserError, match=problem):
        grade_file(pairs, tmp_path / "verdicts.jsonl")
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_a_missing_file_is_the_users_to_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*none\.jsonl"):
        grade_file(tmp_path / "none.jsonl", tmp_path / "out.jsonl")


def test_characters_that_no_file_can_hold_are_written_as_json_spells_them(tmp_path: Path) -> None:
    out = tmp_path / "new" / "verdicts.jsonl"
    grade_file(write(tmp_path / "pairs.jsonl", '{"gold": "5", "answer": "\\ud800\\u0000"}\n'), out)
    row = json.loads(out.read_text(encoding="utf-8"))
    assert row["answer"] == "\ud800\x00"
    assert row["verdict"] == "unparsed"


def test_a_file_in_another_encoding_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(b'{"gold": "1", "answer": "\xff\xfe"}\n')
    with pytest.raises(UserError, match="line 1 of .* is not UTF-8"):
        grade_file(tmp_path / "pairs.jsonl", tmp_path / "out.jsonl")
