"""Turns rows into documents: text, or token ids where the source is tokenized already.

A row that gives no document comes as an `Unreadable` with its reason; `empty` and `left_out` are the source's own
doing, the others count as bad rows.
"""

from __future__ import annotations

import functools
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladle.artifacts.files import hash_file
from ladle.data.config import SourceConfig
from ladle.data.encoders import Vocabulary
from ladle.data.formats import FAULTS, PlainFormatter, find_code, load_function, read_conversation
from ladle.data.rows import LONE_SURROGATE, Piece, Row, Unreadable, read_piece
from ladle.errors import BadRow, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HARMLESS = ("empty", "left_out")  # reasons that do not count towards `max_bad_fraction`

Document = str | list[int] | Unreadable
Formatter = Callable[[dict[str, Any]], str | list[int]]

_OPTIONAL = {"input_ids": ("attention_mask",), "messages": ("tools", "chat_template_kwargs")}


def read_documents(
    piece: Piece, source: SourceConfig, tokenizer_folder: Path, unwritten: Counter[str] | None = None
) -> Iterator[Document]:
    """Yield the documents of a piece: one in the place of each row, or why there is none.

    Args:
        piece: what to read.
        source: how.
        tokenizer_folder: whose chat template writes messages.
        unwritten: counts the rows of which the chat template leaves something out, per key of a turn or `tools`.

    Raises:
        UserError: a damaged file, a column that does not exist, a chat template or function that cannot be loaded.
    """
    formatter = make_formatter(source, tokenizer_folder, unwritten)
    rows = read_piece(piece, columns_of(source), _OPTIONAL.get(source.format, ()))
    return (to_document(row, formatter) for row in rows)


def columns_of(source: SourceConfig) -> list[str] | None:
    """Return the columns that the source's format needs; None for all."""
    if source.format == "function":
        return None
    return source.template_columns() if source.format == "template" else [source.reads]


def format_identity(source: SourceConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what decides the document that a row becomes: the format, the code of a function, the chat template where
    messages may be written out by it.

    Raises:
        UserError: a formatting function that cannot be loaded.
    """
    identity: dict[str, Any] = {source.format: source.reads}
    if source.function is not None:
        load_function(source.function)
        identity["code"] = hash_file(find_code(source.function))
    if source.format in ("messages", "function"):
        identity["chat"] = vocabulary.chat_digest
    if source.template_date is not None:
        identity["day"] = source.template_date
    return identity


def make_formatter(source: SourceConfig, tokenizer_folder: Path, unwritten: Counter[str] | None = None) -> Formatter:
    """Return the function from a row to a document; it raises BadRow, with the reason, for a row that gives none.

    It counts in `unwritten` what the chat template leaves out.

    Raises:
        UserError: a chat template or a formatting function that cannot be loaded.
    """
    tokenizer = functools.cache(lambda: _load_chat_tokenizer(source, tokenizer_folder))
    counts = Counter[str]() if unwritten is None else unwritten
    write = functools.partial(_written, tokenizer=tokenizer, unwritten=counts)
    if source.function is not None:
        return functools.partial(_call, load_function(source.function), write)
    if source.format == "template":
        return functools.partial(_fill, source.reads, source.template_columns())

    def of_column(row: dict[str, Any]) -> str | list[int]:
        if (value := row.get(source.reads)) is None:
            raise BadRow("null" if source.reads in row else "missing_column")
        if source.format == "messages":
            return write(value, row)
        return _checked_text(value) if source.format == "text" else _checked_ids(value, row.get("attention_mask"))

    return of_column


def to_document(row: Row, formatter: Formatter) -> Document:
    """Return the row's document, or why there is none."""
    if isinstance(row, Unreadable):
        return row
    try:
        return formatter(row) or Unreadable("empty")
    except BadRow as fault:
        return Unreadable(fault.problem)


def _call(
    function: Callable[[dict[str, Any]], Any], write: Callable[[Any, dict[str, Any]], str], row: dict[str, Any]
) -> str | list[int]:
    try:
        result = function(row)
    except FAULTS as error:  # the function's own: it keeps its traceback, and says for which row
        error.add_note(f"in a formatting function, given the row {reprlib.repr(row)}")
        raise
    if result is None:
        raise BadRow("left_out")
    if isinstance(result, str) and LONE_SURROGATE.search(result):
        raise BadRow("bad_utf8")
    return write(result, {}) if isinstance(result, list) else _checked_text(result)


def _checked_text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("not_text")
    return value


def _checked_ids(value: Any, mask: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**32 for item in value):
        raise BadRow("not_token_ids")
    if isinstance(mask, list) and 0 in mask:
        raise BadRow("padded")
    return value


def _fill(template: str, columns: list[str], row: dict[str, Any]) -> str:
    if not row.keys() >= {*columns}:
        raise BadRow("missing_column")
    if None in (row[column] for column in columns):
        raise BadRow("null")
    try:
        return PlainFormatter().vformat(template, (), row)
    except BadRow as fault:
        raise BadRow("not_text") from fault
    except FAULTS as fault:
        raise BadRow("template_does_not_fit") from fault


def _written(
    messages: Any, row: dict[str, Any], tokenizer: Callable[[], PreTrainedTokenizerFast], unwritten: Counter[str]
) -> str:
    """Return turns as the chat template writes them, with the row's `tools` and `chat_template_kwargs`."""
    from ladle.models.chat import left_out, render  # imported where needed: transformers takes seconds

    if messages == []:
        return ""
    try:
        turns, arguments = read_conversation(messages, row)
    except BadRow as fault:
        raise BadRow("not_messages") from fault
    try:
        keys = {"tools": arguments.get("tools"), **arguments.get("chat_template_kwargs", {})}
        text = render(tokenizer(), turns, **keys)
    except BadRow as fault:  # such as a role or an order of turns that it does not know
        raise BadRow("refused_by_chat_template") from fault
    unwritten.update(left_out(turns, arguments.get("tools"), text))
    return text


def _load_chat_tokenizer(source: SourceConfig, folder: Path) -> PreTrainedTokenizerFast:
    from ladle.models.chat import set_template_date
    from ladle.models.tokenizer import load_fast_tokenizer

    tokenizer = load_fast_tokenizer(folder)
    if tokenizer.chat_template is None:
        problem = f"the tokenizer in {folder} has no chat template"
        raise UserError(problem, "add one to its tokenizer_config.json, or use `format: template`")
    set_template_date(tokenizer, source.template_date, f"template_date of source {source.name}")
    return tokenizer
