"""Explaining a failed validation: which key, what was seen, what was meant, and where it stands."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from ladle.config import Config
from ladle.config_file.tree import KeyPath
from ladle.errors import UserError

LONGEST_VALUE = 60
"""Characters of a wrong value that a message shows."""


def explain(error: ValidationError, model: type[Config], tree: Any, where: Callable[[KeyPath], str]) -> UserError:
    """Return the one fault to mend first: a config's own complaint, else an unknown key, else the first wrong value.

    Args:
        error: what pydantic found.
        model: what the tree was validated as.
        tree: the tree as it stands in the file.
        where: gives `file:line` of a key.
    """
    messages: list[tuple[str, str, str]] = []
    for fault in error.errors():
        path = _in_file(fault["loc"], tree)
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            return UserError(cause.problem, f"{cause.fix} ({where(path)})")
        key = ".".join(str(part) for part in path)
        if fault["type"] == "extra_forbidden":
            messages.insert(0, (f"unknown key {key!r}", _nearest(model, path), where(path)))
        elif fault["type"] == "missing":
            messages.append((f"{key} is missing", f"add `{path[-1]}: ...` there", where(path)))
        else:
            messages.append((f"{key or 'recipe'}: {_shorten(fault['input'])}", fault["msg"].lower(), where(path)))
    problem, fix, place = messages[0]
    return UserError(problem, f"{fix} ({place})")


def _in_file(location: tuple[str | int, ...], tree: Any) -> KeyPath:
    """Drop the parts of a pydantic location that are names of union members, which stand in no file."""
    path: list[str | int] = []
    for position, part in enumerate(location):
        if _holds(tree, part):
            tree = tree[part]
            path.append(part)
        elif position == len(location) - 1:
            path.append(part)
    return tuple(path)


def _holds(tree: Any, part: str | int) -> bool:
    return isinstance(tree, dict) and part in tree or isinstance(tree, list) and isinstance(part, int)


def _nearest(model: type[Config], path: KeyPath) -> str:
    if path[-2:-1] == path[-1:]:  # kto.data=… given to `ladle kto`, whose overrides are relative to the section
        return f"keys are relative to {path[-1]!r} here: leave its name out"
    known = _known_keys(model, path[:-1])
    close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(sorted(known))}"


def _known_keys(annotation: Any, path: KeyPath) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if not path:
            return list(fields)
        return _known_keys(fields[str(path[0])].annotation, path[1:]) if path[0] in fields else []
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return [key for argument in arguments for key in _known_keys(argument, path)]
    if origin is typing.Annotated:
        return _known_keys(arguments[0], path)
    if origin in (list, tuple, dict) and path:
        return _known_keys(arguments[-1] if origin is dict else arguments[0], path[1:])
    return []


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
