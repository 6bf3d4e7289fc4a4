"""Conversations as rows of tokens: what is trained on, what is left out, and how rows are packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ladle.data import prefer, sft
from ladle.data.config import SftDataConfig, SftPreferConfig
from ladle.data.store import IGNORED_LABEL, MixedDataset
from ladle.errors import UserError
from ladle.stage import StageResult
from tests.tiny_models import make_tokenizer


def turn(role: str, content: str, **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **keys}


USER, ANSWER = turn("user", "3 plus 4?"), turn("assistant", "The answer is 7.")


def make_rows(
    rows: list[dict[str, Any]], folder: Path, source: dict[str, Any] | None = None, chat_template: str = "", **data: Any
) -> StageResult:
    """Run both data stages on rows, with a tokenizer that knows ChatML's markers, and return the second's result."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if chat_template:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text("{}")
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("preference", "data"):
        (folder / name).mkdir()
    joined = SftPreferConfig.model_validate({"data": [{"dataset": str(file), **(source or {})}]})
    prefer.run(joined, {"source:0": [file]}, folder / "preference")
    inputs = {"tokenizer": [folder / "model"], "preference": [folder / "preference"]}
    return sft.run(SftDataConfig.model_validate({"max_length": 128, **data}), inputs, folder / "data")


def trained_texts(folder: Path) -> list[str]:
    """Return the text of each run of tokens that is trained on."""
    tokenizer, texts = make_tokenizer(), list[str]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    dataset = MixedDataset(folder / "data")
    for row in map(dataset.__getitem__, range(len(dataset))):
        run: list[int] = []
        for label in [*row["labels"].tolist(), IGNORED_LABEL]:
            if label == IGNORED_LABEL and run:
                texts.append(tokenizer.decode(run))
                run = []
            elif label != IGNORED_LABEL:
                run.append(label)
    return sorted(texts)


@pytest.mark.parametrize(
    ("row", "source", "expected"),
    [
        ({"messages": [USER, ANSWER, turn("user", "1 plus 1?"), turn("assistant", "2")]}, {"format": "messages"},
         ["2<|im_end|>\n", "The answer is 7.<|im_end|>\n"]),
        ({"prompt": [USER, ANSWER, turn("user", "1 plus 1?")], "completion": [turn("assistant", "2")]}, {},
         ["2<|im_end|>\n"]),
        ({"prompt": "3 plus 4?\n", "completion": "The answer is 7."}, {}, ["The answer is 7.<|endoftext|>"]),
        ({"prompt": "3 plus 4?\n", "completion": ["7", "8"], "label": [True, False]}, {}, ["7<|endoftext|>"]),
        ({"chosen": [USER, ANSWER], "rejected": [USER, turn("assistant", "8")]}, {"format": "paired"},
         ["The answer is 7.<|im_end|>\n"]),
    ],
    ids=["all answers", "the completion alone", "text", "right attempts", "chosen"],
)  # fmt: skip
def test_answers_alone_are_trained_on(row, source, expected, tmp_path):
    make_rows([row], tmp_path, source)
    assert trained_texts(tmp_path) == expected


def test_rows_hold_whole_conversations_that_start_anew(tmp_path):
    rows = [{"messages": [USER, turn("assistant", f"The answer is {n}.")]} for n in range(9)]
    result = make_rows(rows, tmp_path, {"format": "messages"}, max_length=96)
    dataset = MixedDataset(tmp_path / "data")
    lengths = [length for row in range(len(dataset)) for length in dataset.lengths_of_row(row)]
    assert len(lengths) == result.counters["conversations"] == 9
    assert len(dataset) < 9
    assert sum(int((dataset[row]["position_ids"] == 0).sum()) for row in range(len(dataset))) >= 9
    assert sum(lengths) == result.counters["tokens"]


def test_what_cannot_be_trained_on_is_counted(tmp_path):
    rows = [{"messages": [USER, ANSWER]}] * 2 + [
        {"messages": [turn("user", "plus " * 150), ANSWER]},
        {"messages": [USER, turn("assistant", "plus " * 150)]},
    ]
    rows[1] = {"messages": [turn("user", "1 plus 1?"), turn("assistant", "2")]}
    result = make_rows(rows, tmp_path, {"format": "messages"}, max_bad_fraction=0.5)
    assert result.counters["conversations"] == 3
    assert result.counters["bad: no answer within max_length"] == 1
    assert result.counters["cut_conversations"] == 1


def test_what_the_template_does_not_write_is_said(tmp_path, caplog):
    answer = turn("assistant", "The answer is 7.", reasoning_content="3 plus 4 makes 7")
    make_rows([{"messages": [USER, answer]}], tmp_path, {"format": "messages"})
    assert "does not write all of reasoning_content in 1 of 1 conversations" in caplog.text


def test_data_that_is_all_held_out_is_refused(tmp_path):
    with pytest.raises(UserError, match="goes into validation, and none is trained on"):
        make_rows([{"messages": [USER, ANSWER]}], tmp_path, {"format": "messages", "into": "validation"})


def test_a_template_that_does_not_tell_where_answers_are_is_refused(tmp_path):
    rewrites = (
        "{{ 'answered ' if messages[-1]['role'] == 'assistant' else 'open ' }}"
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    with pytest.raises(UserError, match="differently before an answer.*generation"):
        make_rows([{"messages": [USER, ANSWER]}], tmp_path, {"format": "messages"}, rewrites)


def test_tools_reach_the_template_and_calls_are_trained_on(tmp_path):
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }} "
        "{{ message['content'] or '' }}{% for call in message['tool_calls'] or [] %}{{ call['function']['name'] }}"
        "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}
    turns = [USER, {"role": "assistant", "tool_calls": [call]}, turn("tool", "7"), ANSWER]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    make_rows([{"messages": turns, "tools": tools}], tmp_path, {"format": "messages"}, template)
    assert trained_texts(tmp_path) == [" The answer is 7.<|im_end|>", "add<|im_end|>"]
