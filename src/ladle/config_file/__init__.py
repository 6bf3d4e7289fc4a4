"""From a YAML file and `key=value` overrides to a validated config, with errors that name the key, the file, the line.

`${name}` in a string stands for the top-level scalar of that name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ladle.config import Config
from ladle.config_file.faults import explain
from ladle.config_file.overrides import assign
from ladle.config_file.tree import KeyPath, parse_value, read_tree
from ladle.errors import UserError

__all__ = ["ConfigFile", "KeyPath", "parse_value"]

ConfigT = TypeVar("ConfigT", bound=Config)


_REFERENCE = re.compile(r"\$\{(\w+)\}")


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
        return cls(str(path), *read_tree(path))

    def override(self, assignments: list[str], section: str = "") -> None:
        """Apply `a.b.c=value` in order; a list's element is named by index or by its `name`.

        Args:
            assignments: the overrides.
            section: dotted key that every path is relative to; empty for the whole file.

        Raises:
            UserError: an assignment without `=`, or a path through something that is no mapping or list.
        """
        for assignment in assignments:
            assign(self.tree, assignment, section)

    def where(self, path: KeyPath) -> str:
        """Return `file:line` of the deepest part of `path` that stands in the file."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name

    def validate(self, model: type[ConfigT]) -> ConfigT:
        """Substitute `${…}` and validate.

        Raises:
            UserError: the first fault, with the key, the value seen, the file and the line.
        """
        tree = self.substitute(self.tree)
        try:
            return model.model_validate(tree)
        except ValidationError as error:
            raise explain(error, model, self.tree, self.where) from None

    def substitute(self, value: Any, path: KeyPath = ()) -> Any:
        """Return a part of the tree with `${name}` replaced.

        Raises:
            UserError: a name that is not set.
        """
        if isinstance(value, dict):
            return {key: self.substitute(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.substitute(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        for name in _REFERENCE.findall(value):
            if self.tree.get(name) is None:
                where = self.where(path)
                raise UserError(f"{name} is required and not set", f"add {name}=VALUE to the command ({where})")
        return _REFERENCE.sub(lambda reference: str(self.tree[reference[1]]), value)
