"""The prefer stage: from files in every form to an Arrow dataset of exactly three columns, split by split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import load_from_disk

from ladle.data.config import PreferConfig
from ladle.data.files import splits_of
from ladle.data.rows import read_rows
from ladle.errors import UserError
from ladle.stages import prefer


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def numina(number: int) -> dict:
    messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    return {"source": "s", "problem": f"q{number}", "messages": messages}


def test_every_split_of_numina_becomes_prompt_completion_and_label(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write_jsonl(raw / "train.jsonl", [numina(n) for n in range(5)])
    write_jsonl(raw / "test.jsonl", [numina(n) for n in range(5, 7)])
    source = {"dataset": "numina", "split": "*", "format": "messages", "label": True}
    summary = prefer.run(PreferConfig.model_validate({"data": [source]}), {"source:0": [raw]}, tmp_path)
    data = load_from_disk(tmp_path / "preference")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 5, "test": 2}
    for rows in data.values():
        assert rows.column_names == ["prompt", "completion", "label"]
    assert data["test"][0] == {
        "prompt": [{"content": "q5", "role": "user"}],
        "completion": [{"content": "a5", "role": "assistant"}],
        "label": True,
    }
    assert summary.counters["rows_out"] == 5
    assert summary.counters["test: rows_out"] == 2


def test_a_source_can_go_into_the_evaluation_split_and_balance_leaves_that_alone(tmp_path):
    rows = [{"prompt": f"p{n}", "completion": "c", "label": n % 4 == 0} for n in range(8)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    config = {"data": ["d", {"dataset": "d", "into": "test"}], "balance": True}
    inputs = {"source:0": [tmp_path / "data.jsonl"], "source:1": [tmp_path / "data.jsonl"]}
    prefer.run(PreferConfig.model_validate(config), inputs, tmp_path)
    data = load_from_disk(tmp_path / "preference")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "test": 8}


def test_bad_rows_are_counted_named_and_capped(tmp_path, caplog):
    rows = [{"prompt": "a", "completion": "b", "label": True}] * 3 + [{"prompt": "a", "completion": "", "label": True}]
    write_jsonl(tmp_path / "data.jsonl", rows)
    inputs = {"source:0": [tmp_path / "data.jsonl"]}
    with pytest.raises(UserError, match="1 of 4 preference rows cannot be used"):
        prefer.run(PreferConfig.model_validate({"data": ["d"]}), inputs, tmp_path)
    summary = prefer.run(PreferConfig.model_validate({"data": ["d"], "max_bad_fraction": 0.5}), inputs, tmp_path)
    assert summary.counters["bad: empty prompt or completion"] == 1
    assert "1 rows of train left out: empty prompt or completion" in caplog.text


def test_completions_labelled_both_ways_are_named(tmp_path, caplog):
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    prefer.run(PreferConfig.model_validate({"data": ["d"]}), {"source:0": [tmp_path / "data.jsonl"]}, tmp_path)
    assert "1 completions of train are labelled True in one row and False in another" in caplog.text


def test_thumbs_come_from_csv(tmp_path):
    (tmp_path / "train.csv").write_text("prompt,completion,rating\nhello,hi,up\nhello,go away,down\n")
    source = {"dataset": "d", "format": "thumbs"}
    prefer.run(PreferConfig.model_validate({"data": [source]}), {"source:0": [tmp_path]}, tmp_path)
    assert load_from_disk(tmp_path / "preference")["train"]["label"][:] == [True, False]


def test_a_hub_repositorys_data_folder_is_looked_into(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train-00000-of-00001.jsonl", [{"a": 1}])
    write_jsonl(tmp_path / "data" / "test-00000-of-00001.jsonl", [{"a": 2}])
    assert splits_of([tmp_path]) == ["test", "train"]
    assert list(read_rows([tmp_path], "test")) == [{"a": 2}]
