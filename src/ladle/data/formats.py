"""What stages take of a row: text by a template over its columns or a function of the user's, or a conversation."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ladle.errors import BadRow, UserError

# What a template, or a function of the user's, raises for a row that it does not fit.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
_ROLES = {"human": "user", "gpt": "assistant"}
_SET_BY_LADLE = {"conversation", "tools", "tokenize", "add_generation_prompt", "continue_final_message"}


def columns_of_template(template: str, key: str) -> list[str]:
    """Return the columns that a template names, in order of first use; `{a.b}` and `{a[0]}` name `a`.

    Args:
        template: `"{question}\\n{answer}"`, as in str.format; braces that are text are doubled.
        key: its key in the recipe, for errors.

    Raises:
        UserError: it cannot be read as a template, or names no column.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        problem = f"{key} is not a template: {template!r} ({error})"
        raise UserError(problem, "double braces that are text: {{ }}") from error
    columns = [field.partition(".")[0].partition("[")[0] for field in fields]
    if not columns or any(column == "" or column.isdigit() for column in columns):
        problem = f"{key} is {template!r}, whose braces do not all hold a column"
        raise UserError(problem, "write {column}, and braces that are text as {{ }}")
    return list(dict.fromkeys(columns))


class PlainFormatter(string.Formatter):
    """str.format for text and plain numbers; anything else it would write as Python does (`None`, `[{'role': …`)."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return a field's value; `BadRow` for one that is neither text nor a number."""
        value, column = super().get_field(field_name, args, kwargs)
        is_plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        if not is_plain or (isinstance(value, float) and not math.isfinite(value)):
            raise BadRow(f"column {field_name!r} is {kind_of(value)}, not text or a number")
        return value, column


def kind_of(value: Any) -> str:
    """Return what a value is, for messages."""
    names = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list", str: "text"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def fill(template: str, row: dict[str, Any], key: str) -> str:
    """Return the template with the row's values, text or plain numbers, in it.

    Raises:
        BadRow: the row lacks a column that the template names, or holds something else there.
    """
    missing = [name for name in columns_of_template(template, key) if name not in row]
    if missing:
        raise BadRow(f"there is no column {missing[0]!r} (there is {', '.join(row)})", f"correct {key}")
    try:
        return PlainFormatter().vformat(template, (), row)
    except BadRow:
        raise
    except FAULTS as error:
        raise BadRow(f"{key} does not fit ({template!r}: {error})", f"correct {key}, or the row") from error


def find_code(reference: str) -> Path:
    """Return the file of the module of a function named `module:function`, found without running it.

    The file counts as an input. What the module imports in turn is not looked at: a change there needs another module
    name, or another recipe name.

    Raises:
        UserError: no such module, or one that has no file.
    """
    _look_in_this_folder()
    try:
        spec = find_spec(reference.partition(":")[0])
    except (ImportError, ValueError) as error:
        raise _cannot_load(reference, error) from error
    file = Path((spec and spec.origin) or "")
    if not file.is_file():
        raise _cannot_load(reference, "there is no file of that module")
    return file


def load_function(reference: str) -> Callable[[dict[str, Any]], Any]:
    """Import a function named `module:function`.

    Raises:
        UserError: it cannot be imported, or its code is in another module, whose changes would not be seen.
    """
    _look_in_this_folder()
    module_name, _, name = reference.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise _cannot_load(reference, error) from error
    if inspect.isfunction(function) and function.__module__ != module_name:
        problem = f"the function {reference} is written in the module {function.__module__}"
        fix = f"name it {function.__module__}:{function.__name__}, so that a change of its code is noticed"
        raise UserError(problem, fix)
    return function


def _look_in_this_folder() -> None:
    """Make modules of this folder importable: a console script's path lacks it."""
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def _cannot_load(reference: str, reason: object) -> UserError:
    fix = "write it as module:function, with the module in this folder or on PYTHONPATH"
    return UserError(f"the function {reference} cannot be loaded: {reason}", fix)


def read_turn(value: Any) -> dict[str, Any]:
    """Return one turn as chat templates take it, with all its keys but those that are null."""
    if not isinstance(value, dict):
        raise BadRow(f"messages with {kind_of(value)} in place of a turn")
    turn = {key: item for key, item in value.items() if item is not None}
    if "role" not in turn and "from" in turn:
        turn = {"role": turn.pop("from"), "content": turn.pop("value", None), **turn}
    role, content = turn.pop("role", None), turn.pop("content", None)
    if not isinstance(role, str) or not role or (content is None and not turn):
        raise BadRow("messages without role and content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text")) for part in content)
    if not isinstance(content, str) and content is not None and role != "tool":
        raise BadRow("messages whose content is not text")
    return {"role": _ROLES.get(role, role), **({} if content is None else {"content": content}), **turn}


def read_conversation(messages: Any, row: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the turns of a row's column, and what of the row the chat template is given beside them.

    Raises:
        BadRow: they are not turns, or `tools` and `chat_template_kwargs` not what a template takes.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"messages that are {'empty' if messages == [] else kind_of(messages)}")
    return [read_turn(one) for one in messages], template_arguments(row)


def template_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """Return a conversation's `tools` and `chat_template_kwargs`, where it has any."""
    names = ("tools", "chat_template_kwargs")
    tools, arguments = (_parsed(row.get(name)) for name in names)
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow("tools that are not a list of objects")
    if arguments and (not isinstance(arguments, dict) or arguments.keys() & _SET_BY_LADLE):
        raise BadRow(f"chat_template_kwargs that are not an object, or set one of {', '.join(sorted(_SET_BY_LADLE))}")
    return {name: value for name, value in zip(names, (tools, arguments), strict=True) if value}


def _parsed(value: Any) -> Any:
    """Return what a column holds that may be written as JSON, as TRL's `tools`."""
    try:
        return json.loads(value) if isinstance(value, str) and value else value
    except ValueError:
        return value
