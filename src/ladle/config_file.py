"""From a YAML file and `key=value` overrides to a validated config, with errors that name the key, the file and the line.

Two things differ from plain PyYAML: numbers such as `2e-4` and `7_500_000` are numbers, and `${name}` in a string stands for the
top-level scalar of that name.
"""

from __future__ import annotations

import difflib
import re
import string
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ladle.config import Config
from ladle.errors import UserError

ConfigT = TypeVar("ConfigT", bound=Config)
KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader whose floats need no dot: YAML 1.1 reads `2e-4` as a string."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class ConfigFile:
    """A YAML tree that remembers where each key stands."""

    def __init__(self, name: str, tree: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        self.name, self.tree, self.lines = name, tree, lines

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Read a file.

        Raises:
            UserError: it is missing, is not YAML, holds a key twice, or is not a mapping.
        """
        if not path.is_file():
            nearby = ", ".join(sorted(str(p) for p in path.parent.glob("*.yaml"))) or "none"
            raise UserError(f"there is no recipe at {path}", f"name an existing one (here: {nearby})")
        lines: dict[KeyPath, int] = {}
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
            tree = _construct(node, (), lines, str(path)) if node else None
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML", " ".join(str(error).split())) from error
        if not isinstance(tree, dict):
            raise UserError(f"{path} holds no keys", "write a recipe as `key: value` lines")
        return cls(str(path), tree, lines)

    def override(self, assignments: list[str], section: str = "") -> None:
        """Apply `a.b.c=value` in order; a list's element is named by index or by its `name`.

        Raises:
            UserError: an assignment without `=`, or a path through something that is no mapping or list.
        """
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            if not separator or not key:
                raise UserError(
                    f"{assignment!r} is not an override", "write key=value, for example pretrain.trainer.max_steps=10"
                )
            keys = [part for part in (section + "." + key if section else key).split(".") if part]
            _assign(self.tree, keys, parse_value(text), assignment)

    def where(self, path: KeyPath) -> str:
        """Return `file:line` of the deepest part of `path` that stands in the file."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name

    def validate(self, model: type[ConfigT]) -> ConfigT:
        """Substitute `${…}` and validate.

        Raises:
            UserError: the first few faults, each with the key, the value seen, the file and the line.
        """
        tree = _substitute(self.tree, self.tree, self)
        try:
            return model.model_validate(tree)
        except ValidationError as error:
            raise self._explain(error, model) from None

    def _explain(self, error: ValidationError, model: type[Config]) -> UserError:
        messages = []
        for fault in error.errors():
            cause = fault.get("ctx", {}).get("error")
            if isinstance(cause, UserError):
                return UserError(cause.problem, f"{cause.fix} ({self.where(_in_file(fault['loc'], self.tree))})")
            path = _in_file(fault["loc"], self.tree)
            key = ".".join(str(part) for part in path)
            if fault["type"] == "extra_forbidden":
                messages.insert(0, (f"unknown key {key!r}", _nearest(model, path), self.where(path)))
            else:
                messages.append(
                    (f"{key or 'recipe'}: {_shorten(fault['input'])}", fault["msg"].lower(), self.where(path))
                )
        problem, fix, where = messages[0]
        return UserError(problem, f"{fix} ({where})")


def parse_value(text: str) -> Any:
    """Read the right side of an override as YAML: `2e-4`, `true`, `[a, b]`, `null`, or plain text."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        return text


def _construct(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in mapping:
                raise UserError(
                    f"key {key!r} stands twice", f"keep one of them ({name}:{key_node.start_mark.line + 1})"
                )
            lines[(*path, key)] = key_node.start_mark.line + 1
            mapping[key] = _construct(value_node, (*path, key), lines, name)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, index), lines, name) for index, item in enumerate(node.value)]
    return _Loader("").construct_object(node, deep=True)


def _assign(tree: Any, keys: list[str], value: Any, assignment: str) -> None:
    for key in keys[:-1]:
        tree = _descend(tree, key, assignment)
    if isinstance(tree, list):
        tree[_index_in(tree, keys[-1], assignment)] = value
    elif isinstance(tree, dict):
        tree[keys[-1]] = value
    else:
        raise UserError(f"override {assignment!r} goes through {tree!r}, which holds no keys", "check the path's parts")


def _descend(tree: Any, key: str, assignment: str) -> Any:
    if isinstance(tree, list):
        return tree[_index_in(tree, key, assignment)]
    if not isinstance(tree, dict):
        raise UserError(f"override {assignment!r} goes through {tree!r}, which holds no keys", "check the path's parts")
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


def _substitute(value: Any, root: dict[str, Any], file: ConfigFile, path: KeyPath = ()) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, root, file, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, root, file, (*path, index)) for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    for name in string.Template(value).get_identifiers():
        if root.get(name) is None:
            raise UserError(f"{name} is required and not set", f"add {name}=VALUE to the command ({file.where(path)})")
    return string.Template(value).substitute({key: str(item) for key, item in root.items()})


def _in_file(location: tuple[str | int, ...], tree: Any) -> KeyPath:
    """Drop the parts of a pydantic location that are names of union members, which stand in no file."""
    path: list[str | int] = []
    for position, part in enumerate(location):
        inside = isinstance(tree, dict) and part in tree or isinstance(tree, list) and isinstance(part, int)
        if inside:
            tree = tree[part]  # type: ignore[index]
            path.append(part)
        elif position == len(location) - 1:
            path.append(part)
    return tuple(path)


def _nearest(model: type[Config], path: KeyPath) -> str:
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
    return text if len(text) <= 60 else text[:57] + "..."
