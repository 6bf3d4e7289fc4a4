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
from ladle.data.encoders import Vocabulary
from ladle.data.formats import find_code, load_function
from ladle.data.rows import Row, Unreadable
from ladle.errors import UserError

HARMLESS = ("empty", "left_out")
"""Reasons that do not count towards `max_bad_fraction`."""

Document = str | list[int] | Unreadable
Formatter = Callable[[dict[str, Any]], Document]

_PART_CHARS = 2**20
_MISSING = Unreadable("missing_column")


def columns_of(source: SourceConfig) -> list[str] | None:
    """Return the columns that the source's format reads; None for all."""
    if source.format == "function":
        return None
    return source.template_columns() if source.format == "template" else [getattr(source, source.format)]


def format_identity(source: SourceConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what decides the document that a row becomes: the format, the code of a function, the chat template where
    messages may be written out by it.

    Raises:
        UserError: a formatting function that cannot be loaded.
    """
    identity: dict[str, Any] = {source.format: getattr(source, source.format)}
    if source.function is not None:
        load_function(source.function)
        identity["code"] = hash_file(find_code(source.function))
    if source.format in ("messages", "function"):
        identity["chat"] = vocabulary.chat_digest
    return identity


def make_formatter(source: SourceConfig, tokenizer_folder: Path) -> Formatter:
    """Return the function from a row to a document.

    Raises:
        UserError: a chat template or a formatting function that cannot be loaded.
    """
    render = functools.cache(lambda: _chat_renderer(tokenizer_folder))
    if source.function is not None:
        function = load_function(source.function)

        def of_function(row: dict[str, Any]) -> Document:
            result = function(row)
            if result is None:
                return Unreadable("left_out")
            return _rendered(result, render) if isinstance(result, list) else _checked_text(result)

        return of_function
    if source.format == "template":
        return functools.partial(_fill, source.template, source.template_columns())
    column = getattr(source, source.format)
    checks: dict[str, Callable[[Any], Document]] = {
        "text": _checked_text,
        "input_ids": _checked_ids,
        "messages": lambda value: _rendered(value, render),
    }
    check = checks[source.format]

    def of_column(row: dict[str, Any]) -> Document:
        if (value := row.get(column)) is None:
            return Unreadable("null") if column in row else _MISSING
        return check(value)

    return of_column


def to_document(row: Row, formatter: Formatter) -> Document:
    """Return the row's document, or why there is none."""
    document = row if isinstance(row, Unreadable) else formatter(row)
    return Unreadable("empty") if not isinstance(document, Unreadable) and len(document) == 0 else document


def _checked_text(value: Any) -> Document:
    if not isinstance(value, str):
        return Unreadable("not_text")
    if value.isascii():
        return value
    try:  # part by part, for the memory; JSON's escapes can write lone surrogates, which UTF-8 cannot hold
        for start in range(0, len(value), _PART_CHARS):
            value[start : start + _PART_CHARS].encode("utf-8")
    except UnicodeEncodeError:
        return Unreadable("bad_utf8")
    return value


def _checked_ids(value: Any) -> Document:
    is_ids = isinstance(value, list) and all(type(item) is int and 0 <= item < 2**32 for item in value)
    return value if is_ids else Unreadable("not_token_ids")


def _fill(template: str, columns: list[str], row: dict[str, Any]) -> Document:
    values = [row.get(column, _MISSING) for column in columns]
    if _MISSING in values or None in values:
        return _MISSING if _MISSING in values else Unreadable("null")
    try:
        return _checked_text(template.format(**row))
    except (LookupError, AttributeError, ValueError, TypeError):
        return Unreadable("template_does_not_fit")


Render = Callable[[list[dict[str, Any]]], str]


def _rendered(messages: Any, render: Callable[[], Render]) -> Document:
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))
        for message in messages
    ):
        return Unreadable("not_messages")
    return _checked_text(render()(messages) if messages else "")


def _chat_renderer(tokenizer_folder: Path) -> Render:
    from ladle.models.tokenizer import load_fast_tokenizer

    tokenizer = load_fast_tokenizer(tokenizer_folder)
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer in {tokenizer_folder} has no chat template",
            "add one to its tokenizer_config.json, or use `format: template`",
        )
    return lambda messages: str(tokenizer.apply_chat_template(messages, tokenize=False))
