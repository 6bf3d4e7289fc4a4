"""The contract of a stage: all that the rest of the system may ask of one.

Each file of `ladle.stages` declares one `STAGE`. Building, launching, checking and rehearsing read it and know no
stage by name; `ladle.pipeline` is the one place that names them. Nothing here imports torch, and neither does a
declaration: `run` imports what it needs when it is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladle.config import Config
from ladle.executors import Shard
from ladle.log import collected_warnings

if TYPE_CHECKING:
    from ladle.artifacts.step import Step
    from ladle.checkup import Checkup, Estimate, Finding, Measured, Shrinking
    from ladle.excerpts import Excerpt, Look

Inputs = dict[str, list[Path]]
"""What a stage reads: folders and files by role, in order."""


@dataclass(frozen=True)
class StageResult:
    """What a finished stage reports; it becomes part of the artifact's record.

    Attributes:
        counters: what was read, written, left out.
        metrics: what was measured of the result; any JSON value.
        timings: seconds, by name; `seconds` itself is the whole build's and is added by it.
        files_read: for roles whose folders hold more than was read of them, the files (or folders of files) that were.
        input_hashes: blake3 of input files by path, where the stage took them while it read.
        output_hashes: blake3 of its own files by path in the artifact, where it took them while it wrote.
        warnings: what it logged as such; `run_stage` adds them.
    """

    counters: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    files_read: Mapping[str, Iterable[Path]] = field(default_factory=dict)
    input_hashes: Mapping[str, str] = field(default_factory=dict)
    output_hashes: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One kind of step.

    Attributes:
        name: as in records and fingerprints; the module of `ladle.stages` that declares it has the same name.
        run: runs it: its config, its inputs, and the folder that becomes the artifact.
        run_shard: works one share of it ahead of `run`, side by side with others; None if it is one piece.
        version: raised when its meaning changes, so that old artifacts are rebuilt.
        volatile: globs of files whose bytes may differ between equal results (timings); left out of the digest.
        wants_gpus: each of its processes or workers is worth a GPU if there is one; or how many GPUs a config is worth.
        resumes_from: what a stopped run has left to resume from, in its unfinished folder; None if it starts again.
        section: the class of the recipe's section that configures it.
        check: yields what can be known before a run to stop or spoil it.
        model_config: returns the config.json of the model that a step makes, if it is another than the one it reads.
        bytes_written: returns about how much a step leaves or needs at once.
        shrink: returns its section in tiny amounts at the true shape, for a rehearsal.
        extrapolate: returns what the true step takes, from what its rehearsal took.
        peek: yields what a model is given in it, as text.
    """

    name: str
    run: Callable[[Any, Inputs, Path], StageResult]
    run_shard: Callable[[Any, Inputs, Path, Shard], None] | None = None
    version: int = 1
    volatile: tuple[str, ...] = ()
    wants_gpus: bool | Callable[[Any], int] = False
    resumes_from: str | None = None
    section: type[Config] | None = None
    check: Callable[[Checkup], Iterable[Finding]] | None = None
    model_config: Callable[[Step], dict[str, Any] | None] | None = None
    bytes_written: Callable[[Checkup], int] | None = None
    shrink: Callable[[Any, Shrinking], Config] | None = None
    extrapolate: Callable[[Checkup, Measured], Estimate] | None = None
    peek: Callable[[Look], Iterable[Excerpt]] | None = None

    def num_gpus(self, config: Any) -> int:
        """Return how many GPUs of a machine a step of this config uses, if there are as many."""
        if callable(self.wants_gpus):
            return self.wants_gpus(config)
        wanted = getattr(config, "processes", None) or getattr(config, "workers", None) or 1
        return wanted if self.wants_gpus else 0


def deferred(target: str) -> Callable[..., Any]:
    """Return the function `module:name`, imported when it is called, so that a declaration imports nothing heavy."""
    module, _, name = target.partition(":")

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments)

    return call


def run_stage(stage: Stage, config: Config, inputs: Inputs, out: Path) -> StageResult:
    """Run a stage and return its result, with the warnings that it logged."""
    with collected_warnings() as warnings:
        result = stage.run(config, inputs, out)
    return replace(result, warnings=tuple(warnings))


def find_stage(name: str) -> Stage:
    """Return the stage of that name."""
    return importlib.import_module(f"ladle.stages.{name}").STAGE
