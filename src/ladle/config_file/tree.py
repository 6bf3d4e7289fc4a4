"""Reading YAML into a tree of plain values, with the line of every key.

Three things differ from plain PyYAML: numbers such as `2e-4` and `7_500_000` are numbers, `no`, `yes`, `on` and `off`
are words (so `save_strategy: no` means what it says), and a key that stands twice in one mapping is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ladle.errors import UserError

KeyPath = tuple[str | int, ...]
"""The keys and list indices from the root to a value."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads floats and booleans as YAML 1.2 does: 1.1 takes `2e-4` for a string and `no` for false."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_tree(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return a file's mapping, and the line (from 1) of each key and element in it.

    Raises:
        UserError: the file is missing, is not YAML, holds a key twice, or is not a mapping.
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
    return tree, lines


def parse_value(text: str) -> Any:
    """Read the right side of an override as YAML: `2e-4`, `true`, `[a, b]`, `null`, or plain text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def _construct(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> Any:
    lines.setdefault(path, _line_of(node))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in mapping:
                raise UserError(f"key {key!r} stands twice", f"keep one of them ({name}:{_line_of(key_node)})")
            lines[(*path, key)] = _line_of(key_node)
            mapping[key] = _construct(value_node, (*path, key), lines, name)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, index), lines, name) for index, item in enumerate(node.value)]
    return _Loader("").construct_object(node, deep=True)


def _line_of(node: yaml.Node) -> int:
    return node.start_mark.line + 1
