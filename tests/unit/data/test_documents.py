from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from ladle.data.config import SourceConfig
from ladle.data.documents import columns_of, format_identity, make_formatter, to_document
from ladle.data.encoders import read_vocabulary
from ladle.data.rows import Unreadable
from ladle.errors import UserError

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def make_source(**fields: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": "s", "dataset": "x", "ratio": 1.0} | fields)


def format_row(row: Any, folder: Path = Path("unused"), **fields: Any) -> Any:
    document = to_document(row, make_formatter(make_source(**fields), folder))
    return document.reason if isinstance(document, Unreadable) else document


@pytest.mark.parametrize(
    ("value", "document"),
    [
        ("a text", "a text"),
        ("", "empty"),
        (None, "null"),
        (5, "not_text"),
        (["a"], "not_text"),
        ("中\U0001f600", "中\U0001f600"),
    ],
)
def test_text(value: Any, document: str):
    assert format_row({"text": value}, text="text") == document


def test_a_row_without_the_column_or_unreadable_is_not_replaced():
    assert format_row({"other": 1}) == "missing_column"
    assert format_row(Unreadable("bad_json")) == "bad_json"


@pytest.mark.parametrize(
    ("row", "document"),
    [
        ({"question": "1+1", "answer": 2}, "1+1\n2"),
        ({"question": "1+1", "answer": None}, "null"),
        ({"question": "1+1"}, "missing_column"),
    ],
)
def test_template(row: dict[str, Any], document: str):
    assert format_row(row, format="template") == document


@pytest.mark.parametrize(
    ("value", "template", "document"),
    [
        ("x", "{n:d}", "template_does_not_fit"),
        (["x", 1.5], "{n[0]} {n[1]:.2f}", "x 1.50"),
        ({"a": {"b": 7}}, "{n[a][b]}", "7"),
        *((value, "{n}", "not_text") for value in (True, [1], {"a": 1}, math.nan, math.inf, b"x")),
        ([1], "{n!r}", "not_text"),
        ("x", "{n.__class__}", "not_text"),
    ],
)
def test_a_template_writes_text_and_numbers_alone(value: Any, template: str, document: str):
    assert format_row({"n": value}, format="template", template=template) == document


@pytest.mark.parametrize(
    ("value", "document"),
    [
        (CHAT, "<|user|>hi\n<|assistant|>yes\n"),
        ([], "empty"),
        ("hi", "not_messages"),
        ([{"role": "user"}], "not_messages"),
        (None, "null"),
    ],
)
def test_messages(tokenizer_folder: Path, value: Any, document: str):
    assert format_row({"messages": value}, tokenizer_folder, format="messages") == document


def test_turns_and_what_the_template_takes_beside_them_are_passed_whole(tmp_path: Path, tokenizer_folder: Path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "chats")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{{ mood }} {{ strftime_now('%d %b %Y') }}"
        "{% for m in messages %}{{ m.role }}{{ m.content or m.tool_calls[0].name }}{% endfor %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    turns = [{"from": "human", "value": "w?"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}]
    row = {"messages": turns, "tools": '[{"name": "look"}]', "chat_template_kwargs": {"mood": "calm"}}
    expected = '[{"name": "look"}]calm 31 Jan 2024userw?assistantlook'
    assert format_row(row, folder, format="messages", template_date="2024-01-31") == expected
    with pytest.raises(UserError, match="set template_date of source s, such as "):
        format_row(row, folder, format="messages")


@pytest.mark.parametrize(
    ("value", "document"),
    [
        ([3, 4], [3, 4]),
        ([], "empty"),
        ([1.5], "not_token_ids"),
        ([-1], "not_token_ids"),
        ([2**32], "not_token_ids"),
        ([True], "not_token_ids"),
        ("x", "not_token_ids"),
        (None, "null"),
    ],
)
def test_input_ids(value: Any, document: Any):
    assert format_row({"input_ids": value}, format="input_ids") == document


def test_ids_that_an_attention_mask_leaves_out_are_padding():
    masks = ([1, 1, 1], [1, 1, 0], None)
    found = [format_row({"input_ids": [3, 4, 5], "attention_mask": mask}, format="input_ids") for mask in masks]
    assert found == [[3, 4, 5], "padded", [3, 4, 5]]


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, name: str = "formatting_of_test") -> str:
    (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return f"{name}:pick"


@pytest.mark.parametrize(
    ("result", "document"),
    [
        ("row['q'].upper()", "ABC"),
        ("None", "left_out"),
        ("7", "not_text"),
        ("[{'role': 'user', 'content': row['q']}]", "<|user|>abc\n"),
    ],
)
def test_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path, result: str, document: str):
    function = write_module(tmp_path, monkeypatch, f"def pick(row):\n    return {result}\n")
    assert format_row({"q": "abc"}, tokenizer_folder, format="function", function=function) == document


def test_a_functions_code_is_part_of_the_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path
):
    first = write_module(tmp_path, monkeypatch, "def pick(row):\n    return 'a'\n", "first_of_test")
    second = write_module(tmp_path, monkeypatch, "def pick(row):\n    return 'b'\n", "second_of_test")
    vocabulary = read_vocabulary(tokenizer_folder, tmp_path / "unused")
    one, other = (
        format_identity(make_source(format="function", function=name), vocabulary) for name in (first, second)
    )
    assert one["code"] != other["code"]


def test_a_function_is_named_by_the_module_that_holds_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_module(tmp_path, monkeypatch, "def pick(row):\n    return 'a'\n", "holds_it")
    (tmp_path / "passes_it_on.py").write_text("from holds_it import pick\n")
    with pytest.raises(UserError, match="name it holds_it:pick"):
        make_formatter(make_source(format="function", function="passes_it_on:pick"), Path("unused"))


@pytest.mark.parametrize(("format_name", "counts"), [("messages", True), ("text", False)])
def test_the_chat_template_counts_where_messages_are_written_out(
    tmp_path: Path, tokenizer_folder: Path, format_name: str, counts: bool
):
    shutil.copytree(tokenizer_folder, tmp_path / "other")
    settings = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages[0]['content'] }}"
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(settings))
    one, other = (
        format_identity(make_source(format=format_name), read_vocabulary(folder, tmp_path / "unused"))
        for folder in (tokenizer_folder, tmp_path / "other")
    )
    assert (one != other) == counts


@pytest.mark.parametrize("function", ["no_such_module_here:pick", "json:no_such_function"])
def test_a_function_that_cannot_be_loaded_is_refused(function: str):
    with pytest.raises(UserError, match="cannot be loaded"):
        make_formatter(make_source(format="function", function=function), Path("unused"))


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"text": "body"}, ["body"]),
        ({"format": "messages"}, ["messages"]),
        ({"format": "template"}, ["question", "answer"]),
        ({"format": "input_ids"}, ["input_ids"]),
        ({"format": "function", "function": "json:loads"}, None),
    ],
)
def test_only_the_columns_of_the_format_are_read(fields: dict[str, Any], columns: list[str] | None):
    assert columns_of(make_source(**fields)) == columns
