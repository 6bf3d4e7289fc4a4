"""A step: one stage with its config and its inputs, and the fingerprint that names its result.

fingerprint = blake3(stage, version, identity fields of the config, identity of each input by role). Source code,
worker counts, devices and paths never enter it: a local input enters by the hash of its content, a Hub input by its
commit, another step's output by that step's fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ladle.artifacts.files import canonical_json, hash_bytes
from ladle.artifacts.inputs import HubRepository, LocalFiles
from ladle.config import Config
from ladle.stage import Stage

FINGERPRINT_IN_NAMES = 12
"""Hex digits of the fingerprint in a folder's name: 48 bits, ample among the artifacts of one run."""


@dataclass(frozen=True)
class StepOutput:
    """The output of another step; `glob` picks several folders inside it, in natural (numeric) order."""

    step: Step
    glob: str = ""

    def identity(self) -> Any:
        """Return what enters the fingerprint."""
        return {"step": self.step.fingerprint, "glob": self.glob}


StepInput = StepOutput | LocalFiles | HubRepository


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of the pipeline.

    Attributes:
        name: unique in the recipe, and the folder it is built in: `mix`, `evaluate/base`.
        stage: what it is a step of.
        config: the stage's section of the recipe.
        inputs: what it reads, by role.
        section: where `config` stands in the recipe, for messages.
    """

    name: str
    stage: Stage
    config: Config
    inputs: Mapping[str, tuple[StepInput, ...]] = field(default_factory=dict)
    section: str = ""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The JSON value whose hash is the fingerprint."""
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "config": self.config.identity(),
            "inputs": {role: [item.identity() for item in items] for role, items in sorted(self.inputs.items())},
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hex name of the result; equal inputs and settings give equal fingerprints on every machine."""
        return hash_bytes(canonical_json(self.identity).encode())

    @property
    def folder_name(self) -> str:
        """`NAME-FINGERPRINT`, as the artifact's folder is called."""
        return f"{self.name.rsplit('/', 1)[-1]}-{self.fingerprint[:FINGERPRINT_IN_NAMES]}"

    def settle(self, digests: Mapping[str, str]) -> Step:
        """Return the step with its local inputs by content; `digests` are those that the stage took, by path."""
        settled = {
            role: tuple(item.settle(digests) if isinstance(item, LocalFiles) else item for item in items)
            for role, items in self.inputs.items()
        }
        return replace(self, inputs=settled)

    def parents(self) -> list[Step]:
        """Return the steps this one reads from, each once, in order of first use."""
        outputs = [item for items in self.inputs.values() for item in items if isinstance(item, StepOutput)]
        return list({id(output.step): output.step for output in outputs}.values())


def in_build_order(targets: list[Step]) -> list[Step]:
    """Return `targets` and everything they need, each step after its parents."""
    ordered: dict[int, Step] = {}

    def visit(step: Step) -> None:
        if id(step) not in ordered:
            for parent in step.parents():
                visit(parent)
            ordered[id(step)] = step

    for target in targets:
        visit(target)
    return list(ordered.values())
