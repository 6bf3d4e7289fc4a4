"""The prefer stage: from files in every form to an Arrow dataset of exactly three columns, split by split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from ladle.data.config import PreferConfig
from ladle.data.files import splits_of
from ladle.data.prefer import read_examples
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


def test_bad_rows_are_counted_named_and_capped_for_each_source(tmp_path, caplog):
    good = {"prompt": "a", "completion": "b", "label": True}
    write_jsonl(tmp_path / "large.jsonl", [good | {"prompt": f"p{n}"} for n in range(500)])
    write_jsonl(tmp_path / "small.jsonl", [good] * 3 + [good | {"completion": ""}])
    inputs = {"source:0": [tmp_path / "large.jsonl"], "source:1": [tmp_path / "small.jsonl"]}
    config = {"data": ["large", "small"]}
    with pytest.raises(UserError, match=r"1 of 4 preference rows cannot be used in small .* line 4 of .*small.jsonl"):
        prefer.run(PreferConfig.model_validate(config), inputs, tmp_path)
    assert not (tmp_path / "preference").exists()
    summary = prefer.run(PreferConfig.model_validate(config | {"max_bad_fraction": 0.5}), inputs, tmp_path)
    assert summary.counters["bad: empty prompt or completion"] == 1
    assert "1 rows of small (split train) left out: 1 with empty prompt or completion" in caplog.text


def test_turns_of_different_keys_come_back_as_they_were(tmp_path):
    user = {"role": "user", "content": "weather?"}
    arguments = [{"city": "Paris", "x": 0.1 + 0.2}, {"zip": "02139", "near": None}, {"city": 5}]
    calls = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": one}}]} for one in arguments]
    answer = {"role": "assistant", "content": "sunny", "reasoning_content": "r"}
    rows = [{"prompt": [user], "completion": [call], "label": False, "tools": [{"name": "f"}]} for call in calls]
    rows.append({"prompt": [user], "completion": [answer], "label": True, "chat_template_kwargs": {"think": False}})
    write_jsonl(tmp_path / "data.jsonl", rows)
    prefer.run(PreferConfig.model_validate({"data": ["d"]}), {"source:0": [tmp_path / "data.jsonl"]}, tmp_path)
    data = load_from_disk(tmp_path / "preference")["train"]
    assert list(read_examples(data)) == rows
    assert data[1]["completion"] == rows[1]["completion"]  # without Ladle too
    assert data[3]["tools"] is None


@pytest.mark.parametrize("form", ["torch", "numpy", None])
def test_a_saved_folder_keeps_its_labels_and_gets_no_nulls(tmp_path, form):
    user = {"role": "user", "content": "q"}
    calls = [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": one}]} for one in ({"a": "1"}, {"b": "2"})]
    rows = [
        {"prompt": [user], "completion": [call], "label": label}
        for call, label in zip(calls, (True, False), strict=True)
    ]
    Dataset.from_list(rows).with_format(form).save_to_disk(tmp_path / "saved")
    prefer.run(PreferConfig.model_validate({"data": ["d"]}), {"source:0": [tmp_path / "saved"]}, tmp_path)
    assert list(read_examples(load_from_disk(tmp_path / "preference")["train"])) == rows


def test_text_beside_messages_is_refused_with_both_names(tmp_path):
    turns = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
    write_jsonl(tmp_path / "turns.jsonl", [{"prompt": turns[0], "completion": turns[1], "label": True}])
    write_jsonl(tmp_path / "text.jsonl", [{"prompt": "q", "completion": "a", "label": True}])
    inputs = {"source:0": [tmp_path / "turns.jsonl"], "source:1": [tmp_path / "text.jsonl"]}
    with pytest.raises(UserError, match="text holds text and turns messages"):
        prefer.run(PreferConfig.model_validate({"data": ["turns", "text"]}), inputs, tmp_path)
    with pytest.raises(UserError, match="set rollout.prompt: chat"):
        prefer.run(PreferConfig.model_validate({"data": ["turns", "rollouts"]}), inputs, tmp_path)


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
