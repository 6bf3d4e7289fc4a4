"""Get what the pipeline starts from: a clean local model, a fresh one, a Hub dataset, or generated problems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladle.artifacts.step import Step
from ladle.checkup import Checkup, Finding, guarded, same_seconds
from ladle.models.before import check_start, parameters_of, tokenizer_size
from ladle.models.config import FetchModelConfig, InitModelConfig
from ladle.stage import Stage, deferred

run = deferred("ladle.data.fetch:run")


def check(check: Checkup) -> Iterator[Finding]:
    """Yield whether a model can be built; datasets are looked at by what reads them."""
    if isinstance(check.config, (FetchModelConfig, InitModelConfig)):
        yield from guarded("model", check.key, lambda: check_start(check))


def model_config(step: Step) -> dict[str, Any] | None:
    """Return the config of a fresh model or of one in a GGUF file; another imported one has that of its source."""
    if (file := _gguf_file(step)) is not None:
        from ladle.models.gguf import read_gguf_config  # imported where needed: torch takes seconds

        return read_gguf_config(file).to_dict()
    if not isinstance(step.config, InitModelConfig):
        return None
    size = tokenizer_size(step)
    fields = ({} if size is None else {"vocab_size": size}) | step.config.architecture
    return fields if "vocab_size" in fields else None


def bytes_written(check: Checkup) -> int:
    """Return the size of a model's weights."""
    if not isinstance(check.config, (FetchModelConfig, InitModelConfig)):
        return 0
    is_float32 = check.config.dtype == "float32" or (check.config.dtype is None and _gguf_file(check.step) is not None)
    return (4 if is_float32 else 2) * (parameters_of(check) or 0)


def _gguf_file(step: Step) -> Path | None:
    paths = getattr(step.inputs["model"][0], "paths", ()) if isinstance(step.config, FetchModelConfig) else ()
    return paths[0] if paths and paths[0].suffix == ".gguf" else None


STAGE = Stage(
    "fetch",
    run,
    version=2,
    check=check,
    model_config=model_config,
    bytes_written=bytes_written,
    extrapolate=same_seconds,
)
