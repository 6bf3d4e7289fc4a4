"""From an open base language model to an aligned, evaluated one: `ladle.api` is the front door, `open` the start."""

# ruff: noqa: F403, F405 - the lists below name what there is
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladle.api import *

__all__ = ["Artifact", "Evaluation", "Run", "Score", "artifact", "chat", "compare", "compare_records"]
__all__ += ["doctor", "evaluate", "export_arrow", "fetch", "generate", "grade", "grade_file", "launch_on_slurm", "mix"]
__all__ += ["open", "peek", "push", "recipe_schema", "rehearse", "rescore", "soup", "verify", "write_template"]


def __getattr__(name: str) -> Any:
    """Import the API when something of it is used, so that `import ladle` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'ladle' has no attribute {name!r}")
    return getattr(import_module("ladle.api"), name)
