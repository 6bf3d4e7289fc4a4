"""Overrides from a command line: `a.b.c=value`, set in a tree of plain values."""

from __future__ import annotations

from typing import Any

from ladle.config_file.tree import parse_value
from ladle.errors import UserError


def assign(tree: dict[str, Any], assignment: str, section: str = "") -> None:
    """Set the value that `assignment` names, making mappings on the way where there are none.

    Args:
        tree: changed in place.
        assignment: `a.b.c=value`; a list's element is named by index or by its `name`.
        section: dotted key that the path is relative to; empty for the root.

    Raises:
        UserError: no `=`, or a path through something that is no mapping or list.
    """
    key, separator, text = assignment.partition("=")
    if not separator or not key.strip("."):
        raise UserError(
            f"{assignment!r} is not an override", "write key=value, for example pretrain.trainer.max_steps=10"
        )
    keys = [part for part in (section + "." + key if section else key).split(".") if part]
    target: Any = tree
    for part in keys[:-1]:
        target = _descend(target, part, assignment)
    _set(target, keys[-1], parse_value(text), assignment)


def _set(tree: Any, key: str, value: Any, assignment: str) -> None:
    if isinstance(tree, list):
        tree[_index_in(tree, key, assignment)] = value
    elif isinstance(tree, dict):
        tree[key] = value
    else:
        raise _no_keys(tree, assignment)


def _descend(tree: Any, key: str, assignment: str) -> Any:
    if isinstance(tree, list):
        return tree[_index_in(tree, key, assignment)]
    if not isinstance(tree, dict):
        raise _no_keys(tree, assignment)
    if tree.get(key) is None:
        tree[key] = {}
    return tree[key]


def _index_in(items: list[Any], key: str, assignment: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else item for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise UserError(
        f"override {assignment!r} names no element {key!r}", f"use an index below {len(items)} or one of {names}"
    )


def _no_keys(value: Any, assignment: str) -> UserError:
    return UserError(f"override {assignment!r} goes through {value!r}, which holds no keys", "check the path's parts")
