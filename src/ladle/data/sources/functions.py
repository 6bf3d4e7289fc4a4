"""Formatting functions named `module:function`: the file of their code, which counts as an input, and how they are
loaded.

What the module imports in turn is not looked at: a change there needs another module name, or another recipe name.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ladle.errors import UserError


def find_code(reference: str) -> Path:
    """Return the file of a function's module, found without running it.

    Raises:
        UserError: no such module, or one that has no file.
    """
    _look_in_this_folder()
    try:
        spec = find_spec(reference.partition(":")[0])
    except (ImportError, ValueError) as error:
        raise _cannot_load(reference, error) from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise _cannot_load(reference, "there is no file of that module")
    return Path(spec.origin)


def load_function(reference: str) -> Callable[[dict[str, Any]], Any]:
    """Import a function.

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
        raise UserError(
            f"the function {reference} is written in the module {function.__module__}",
            f"name it {function.__module__}:{function.__name__}, so that a change of its code is noticed",
        )
    return function


def _look_in_this_folder() -> None:
    """A console script's path lacks the folder it is run from."""
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def _cannot_load(reference: str, reason: object) -> UserError:
    return UserError(
        f"the function {reference} cannot be loaded: {reason}",
        "write it as module:function, with the module in this folder or on PYTHONPATH",
    )
