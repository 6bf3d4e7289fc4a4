"""A YAML file and `key=value` overrides, validated into a config, with errors that name the key, the file and the line.

What differs from plain PyYAML: `2e-4` is a number, `no`, `yes`, `on`, `off` and dates are text (so `save_strategy: no`
and `name: 2026-01-31` mean what they say), a key given twice in one mapping is refused (`<<: *anchor` brings keys that
a mapping does not set itself), and `${name}` in a string is replaced by the top-level scalar of that name.
"""

from __future__ import annotations

import difflib
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ladle.config import Config
from ladle.errors import UserError

ConfigT = TypeVar("ConfigT", bound=Config)
KeyPath = tuple[str | int, ...]
"""The keys and list indices from the root to a value."""

ON_COMMAND_LINE = "on the command line"
LONGEST_VALUE = 60
"""Characters of a wrong value that a message shows."""

_REFERENCE = re.compile(r"\$\{(\w+)\}")
_BOOL, _FLOAT, _DATE, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "timestamp", "merge"))


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads plain words as YAML 1.2 does: 1.1 takes `2e-4` for a string, `no` for false."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _DATE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_value(text: str) -> Any:
    """Read the right side of an override as YAML: `2e-4`, `true`, `[a, b]`, `null`, or plain text."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return ConfigFile(ON_COMMAND_LINE, {})._construct(node, ()) if node else None
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


class ConfigFile:
    """A tree of plain values that knows where each key was set: a line of the file, or the command line."""

    def __init__(self, name: str, tree: dict[str, Any]) -> None:
        self.name, self.tree = name, tree
        self.lines: dict[KeyPath, int] = {}
        self.overridden: set[KeyPath] = set()

    @classmethod
    def read(cls, path: Path, what: str = "recipe") -> ConfigFile:
        """Read a file; `what` it is shows in messages.

        Raises:
            UserError: it is missing, is not YAML, holds a key twice, or is not a mapping.
        """
        if not path.is_file():
            folder = path if path.is_dir() else path.parent
            there = sorted(str(file) for file in folder.glob("*.yaml") if not file.name.startswith("."))
            problem = f"{path} is a folder, not a {what}" if path.is_dir() else f"there is no {what} at {path}"
            fix = "name an existing YAML file, or write one with `ladle init`"
            raise UserError(problem, f"name an existing one (here: {', '.join(there)})" if there else fix)
        file = cls(str(path), {})
        try:
            node = yaml.compose(path.read_bytes(), Loader=_Loader)  # in UTF-8, or in UTF-16 behind its mark
            tree = file._construct(node, ()) if node else None
        except UserError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of numbers such as 0x_
            raise UserError(f"{path} is not valid YAML", " ".join(str(error).split())) from error
        if not isinstance(tree, dict):
            raise UserError(f"{path} holds no keys", f"write a {what} as `key: value` lines")
        file.tree = tree
        return file

    def _construct(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the node's value, and note the line (from 1) of each key and element in it."""
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self._construct(item, (*path, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return _Loader("").construct_object(node, deep=True)
        merged: dict[str, Any] = {}
        for other in reversed(self._merged_nodes(node)):  # the first has the last word, and own keys after it
            merged |= self._construct(other, path)
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                continue
            if key in mapping:
                raise UserError(f"key {key!r} is given twice", f"keep one of them ({self.name}:{line})")
            self.lines[(*path, key)] = line
            mapping[key] = self._construct(value_node, (*path, key))
        return merged | mapping

    def _merged_nodes(self, node: yaml.MappingNode) -> list[yaml.Node]:
        """Return the mappings that `<<: *anchor` or `<<: [*one, *two]` brings into a mapping, in order."""
        nodes: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                others = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                if not all(isinstance(other, yaml.MappingNode) for other in others):
                    fix = f"write `<<: *anchor` ({self.name}:{key_node.start_mark.line + 1})"
                    raise UserError("`<<` stands before something that holds no keys", fix)
                nodes += others
        return nodes

    def override(self, assignments: list[str], section: str = "") -> None:
        """Apply `a.b.c=value` in order, making mappings on the way where there are none.

        Args:
            assignments: the overrides; an element of a list is named by its index or its `name`.
            section: dotted key that every path is relative to; empty for the whole file.

        Raises:
            UserError: an assignment without `=`, or a path through something that is not a mapping or a list.
        """
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            if not separator or not key.strip("."):
                example = "for example pretrain.trainer.max_steps=10"
                raise UserError(f"{assignment!r} is not an override", f"write key=value, {example}")
            *parents, last = [part for part in f"{section}.{key}".split(".") if part]
            target: Any = self.tree
            path: KeyPath = ()
            for part in parents:
                step = _key_in(target, part, assignment)
                path = (*path, step)
                if isinstance(target, dict) and target.get(step) is None:
                    target[step] = {}
                    self.overridden.add(path)
                target = target[step]
            step = _key_in(target, last, assignment)
            target[step] = parse_value(text)
            self.overridden.add((*path, step))

    def where(self, path: KeyPath) -> str:
        """Return where the value at `path` was set: `on the command line`, or `file:line` of its deepest known part."""
        prefixes = [path[:length] for length in range(len(path), 0, -1)]
        if self.overridden.intersection(prefixes):
            return ON_COMMAND_LINE
        line = next((self.lines[prefix] for prefix in prefixes if prefix in self.lines), None)
        place = self.name if line is None else f"{self.name}:{line}"
        is_changed_within = any(changed[: len(path)] == path for changed in self.overridden)
        return f"{place} and the command line" if self.lines and is_changed_within else place

    def validate(self, model: type[ConfigT]) -> ConfigT:
        """Substitute `${…}` and validate.

        Raises:
            UserError: the first fault, with the key, the value seen, and where it was set.
        """
        tree = self.substitute(self.tree)
        try:
            return model.model_validate(tree)
        except ValidationError as error:
            raise self._explain(error, model) from None

    def substitute(self, value: Any, path: KeyPath = ()) -> Any:
        """Return a part of the tree with `${name}` replaced.

        Raises:
            UserError: a name that is not set.
        """
        if isinstance(value, dict):
            return {key: self.substitute(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.substitute(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        for name in _REFERENCE.findall(value):
            if (found := self.tree.get(name)) is None:
                fix = f"add {name}=VALUE to the command ({self.where(path)})"
                raise UserError(f"{name} is required and not set", fix)
            if isinstance(found, (bool, dict, list)):
                problem = f"${{{name}}} stands for {found!r}, which is not text or a number"
                raise UserError(problem, f"name a key that holds one ({self.where(path)})")
        return _REFERENCE.sub(lambda reference: str(self.tree[reference[1]]), value)

    def _explain(self, error: ValidationError, model: type[Config]) -> UserError:
        """Return the fault to fix first: a config's own complaint, else an unknown key, else the first wrong value."""
        faults = []
        for fault in error.errors():
            path = tuple(part for part in self._path_of(fault["loc"]) if "[" not in str(part))
            key = ".".join(map(str, path))
            cause = fault.get("ctx", {}).get("error")
            if isinstance(cause, UserError):
                faults.append((0, cause.problem, cause.fix, path))
            elif fault["type"] == "extra_forbidden":
                faults.append((1, f"unknown key {key!r}", _nearest(model, path), path))
            elif fault["type"] == "missing":
                faults.append((2, f"{key} is missing", f"add `{path[-1]}: ...` there", path))
            else:
                text = repr(fault["input"])
                seen = text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
                is_of_other_member = fault["type"] in ("model_type", "list_type")  # of a union, most often
                faults.append((2 + is_of_other_member, f"{key or 'recipe'}: {seen}", fault["msg"].lower(), path))
        _, problem, fix, path = min(faults, key=lambda fault: fault[0])
        return UserError(problem, f"{fix} ({self.where(path)})")

    def _path_of(self, location: tuple[Any, ...]) -> KeyPath:
        """Drop the parts of a pydantic location that name members of a union, which no file has as keys."""
        tree: Any = self.tree
        path: KeyPath = ()
        for position, part in enumerate(location):
            if isinstance(tree, dict) and part in tree or isinstance(tree, list) and isinstance(part, int):
                tree = tree[part]
                path = (*path, part)
            elif position == len(location) - 1:
                path = (*path, part)
        return path


def _key_in(tree: Any, key: str, assignment: str) -> str | int:
    """Return what `tree` is indexed with for one part of an override's path."""
    if isinstance(tree, dict):
        return key
    if not isinstance(tree, list):
        raise UserError(f"override {assignment!r} goes through {tree!r}, which holds no keys", "check the path's parts")
    names = [item.get("name") if isinstance(item, dict) else item for item in tree]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(tree):
        return int(key)
    known = ", ".join(name for name in names if isinstance(name, str))
    fix = f"use an index below {len(tree)}" + (f" or one of {known}" if known else "")
    raise UserError(f"override {assignment!r} names no element {key!r}", fix)


def _nearest(model: type[Config], path: KeyPath) -> str:
    if path[-2:-1] == path[-1:]:  # kto.data=… given to `ladle kto`, whose overrides are relative to the section
        return f"keys are relative to {path[-1]!r} here: leave its name out"
    known = sorted({*_known_keys(model, path[:-1])})
    close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(known)}"


def _known_keys(annotation: Any, path: KeyPath) -> list[str]:
    """Return the keys of the config at `path`; those of all members where a union is on the way."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if not path:
            return list(fields)
        return _known_keys(fields[str(path[0])].annotation, path[1:]) if path[0] in fields else []
    arguments = typing.get_args(annotation)
    if path and typing.get_origin(annotation) in (list, dict):
        return _known_keys(arguments[-1], path[1:])
    return [key for argument in arguments for key in _known_keys(argument, path)]
