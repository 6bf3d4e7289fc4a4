"""Turns rows into documents: text, or token ids where the source is tokenized already.

A row that gives no document comes as an `Unreadable` with its reason; `empty` and `left_out` are the source's own
doing, the others count as bad rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ladle.artifacts.files import hash_file
from ladle.data.config import SourceConfig
from ladle.data.rows import Row, Unreadable
from ladle.data.sources.functions import find_code, load_function
from ladle.data.vocabulary import Vocabulary
from ladle.errors import UserError

PART_CHARS = 2**20

HARMLESS = ("empty", "left_out")
"""Reasons that do not count towards `max_bad_fraction`."""

Document = str | list[int] | Unreadable
Formatter = Callable[[dict[str, Any]], Document]

EMPTY = Unreadable("empty")
NOT_TEXT = Unreadable("not_text")
NULL = Unreadable("null")
MISSING = Unreadable("missing_column")


def columns_of(source: SourceConfig) -> list[str] | None:
    """Return the columns that the source's format reads; None for all."""
    if source.format == "function":
        return None
    if source.format == "template":
        return source.template_columns()
    return [getattr(source, source.format)]


def format_identity(source: SourceConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what decides the document that a row becomes: the format, the code of a function, the chat template where
    messages may be written out by it.

    Raises:
        UserError: a formatting function that cannot be had.
    """
    if source.format == "function":
        assert source.function is not None  # the schema asks for it
        load_function(source.function)
        code = hash_file(find_code(source.function))
        return {"function": source.function, "code": code, "chat": vocabulary.chat_digest}
    chat = {"chat": vocabulary.chat_digest} if source.format == "messages" else {}
    return {source.format: getattr(source, source.format), **chat}


def make_formatter(source: SourceConfig, tokenizer_folder: Path) -> Formatter:
    """Return the function from a row to a document.

    Raises:
        UserError: a chat template or a formatting function that cannot be had.
    """
    if source.format == "text":
        return functools.partial(_text_of, source.text)
    if source.format == "input_ids":
        return functools.partial(_ids_of, source.input_ids)
    if source.format == "template":
        return functools.partial(_fill, source.template, tuple(source.template_columns()))
    render = functools.cache(lambda: _chat_renderer(tokenizer_folder))
    if source.format == "messages":
        return lambda row: _conversation(row.get(source.messages, MISSING), render())
    assert source.function is not None  # the schema asks for it
    function = load_function(source.function)
    return lambda row: _result_of(function(row), render)


def to_document(row: Row, formatter: Formatter) -> Document:
    """Return the row's document, or why there is none."""
    if isinstance(row, Unreadable):
        return row
    document = formatter(row)
    return EMPTY if not isinstance(document, Unreadable) and len(document) == 0 else document


def _text_of(column: str, row: dict[str, Any]) -> Document:
    return _checked_text(row.get(column, MISSING))


def _checked_text(value: Any) -> str | Unreadable:
    if isinstance(value, (str, Unreadable)):
        return value if isinstance(value, Unreadable) or value.isascii() else _encodable(value)
    return NULL if value is None else NOT_TEXT


def _encodable(text: str) -> str | Unreadable:
    """Refuse lone surrogates, which JSON's escapes can write and UTF-8 cannot hold."""
    try:
        for start in range(0, len(text), PART_CHARS):
            text[start : start + PART_CHARS].encode("utf-8")
    except UnicodeEncodeError:
        return Unreadable("bad_utf8")
    return text


def _ids_of(column: str, row: dict[str, Any]) -> Document:
    value = row.get(column, MISSING)
    if isinstance(value, Unreadable):
        return value
    if value is None:
        return NULL
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**32 for item in value):
        return Unreadable("not_token_ids")
    return value


def _fill(template: str, columns: tuple[str, ...], row: dict[str, Any]) -> Document:
    values = [row.get(column, MISSING) for column in columns]
    if MISSING in values:
        return MISSING
    if None in values:
        return NULL
    try:
        return _checked_text(template.format(**row))
    except (LookupError, AttributeError, ValueError, TypeError):
        return Unreadable("template_does_not_fit")


def _conversation(messages: Any, render: Callable[[list[Any]], str]) -> Document:
    if messages is None or isinstance(messages, Unreadable):
        return NULL if messages is None else messages
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        return Unreadable("not_messages")
    return _checked_text(render(messages)) if messages else EMPTY


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _result_of(result: Any, render: Callable[[], Callable[[list[Any]], str]]) -> Document:
    if result is None:
        return Unreadable("left_out")
    return _conversation(result, render()) if isinstance(result, list) else _checked_text(result)


def _chat_renderer(tokenizer_folder: Path) -> Callable[[list[Any]], str]:
    from ladle.models.tokenizer import load_fast_tokenizer

    tokenizer = load_fast_tokenizer(tokenizer_folder)
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer in {tokenizer_folder} has no chat template",
            "add one to its tokenizer_config.json, or use `format: template`",
        )
    return lambda messages: str(tokenizer.apply_chat_template(messages, tokenize=False))
