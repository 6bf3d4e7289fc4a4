"""A step: one stage with its config and its inputs, and the fingerprint that names its result.

fingerprint = blake3(stage, version, identity fields of the config, identity of each input by role). Source code,
worker counts, devices and paths never enter it: a local input enters by the hash of its content, a Hub input by its
commit, another step's output by that step's fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ladle.artifacts.file_hashes import FileHashes, Signature, signature_of
from ladle.artifacts.files import canonical_json, hash_bytes
from ladle.config import Config
from ladle.errors import UserError

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


@dataclass(frozen=True)
class LocalFiles:
    """Files or folders outside the run, by content.

    Attributes:
        paths: what the stage is given.
        files: of every file its path, its name in the folder that was given ("" for a file given itself), its blake3.
    """

    paths: tuple[Path, ...]
    files: tuple[tuple[str, str, str], ...]

    def identity(self) -> Any:
        """Return what enters the fingerprint: content only, in order, so that moving the data changes nothing."""
        return {"content": [[name, digest] for _, name, digest in self.files]}


@dataclass(frozen=True)
class UnreadFiles:
    """Local files whose content is not known yet: the stage hashes them while it reads them, so they are read once.

    Until then they stand for themselves by place, size and modification time, which names the unfinished build.
    `settle` then gives them by content, which names the result.

    Attributes:
        paths: what the stage is given.
        files: of every file its path, its name in the folder that was given, and its signature.
        hashes: where digests are kept.
    """

    paths: tuple[Path, ...]
    files: tuple[tuple[str, str, Signature], ...]
    hashes: FileHashes = field(compare=False, repr=False)

    def identity(self) -> Any:
        """Return what enters the fingerprint of the unfinished build."""
        return {"unread": [[str(Path(path).absolute()), *signature] for path, _, signature in self.files]}

    def settle(self, digests: Mapping[str, str]) -> LocalFiles:
        """Return the files by content: by the digest where there is one, else hashed now.

        Raises:
            UserError: a file is no longer what it was when the step was planned.
        """
        for path, _, signature in self.files:
            if signature_of(Path(path)) != signature:
                raise changed_meanwhile(path)
            if path in digests:
                self.hashes.learn(Path(path), signature, digests[path])
        files = tuple((path, name, self.hashes.hash(Path(path))) for path, name, _ in self.files)
        self.hashes.save()
        return LocalFiles(self.paths, files)


def changed_meanwhile(path: str | Path) -> UserError:
    """Return the error that an input is no longer what it was when the step was planned, or a parent was built."""
    return UserError(f"{path} is not what it was when this step was planned", "leave inputs alone, and run it again")


@dataclass(frozen=True)
class HubRepository:
    """A model or dataset of the Hub at one commit.

    Attributes:
        kind: `model` or `dataset`.
        repo_id: `org/name`.
        commit: the whole commit id.
        subset: the configuration of a dataset that has several.
        file: the one file of it that the stage reads, where it reads one alone; nothing else is fetched then.
        patterns: globs of the files that the stage reads, where it does not read them all; likewise.
        revision: the branch, tag or commit that stood for it; None is the default branch.
    """

    kind: str
    repo_id: str
    commit: str
    subset: str | None = None
    file: str | None = None
    patterns: tuple[str, ...] = ()
    revision: str | None = None

    def identity(self) -> Any:
        """Return what enters the fingerprint."""
        whole = {"hub": self.kind, "repo_id": self.repo_id, "commit": self.commit, "subset": self.subset}
        return whole if self.file is None else whole | {"file": self.file}


StepInput = StepOutput | LocalFiles | UnreadFiles | HubRepository


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of the pipeline.

    Attributes:
        name: unique in the recipe, and the folder it is built in: `mix`, `evaluate/base`.
        stage: module under `ladle.stages` that runs it.
        config: the stage's section of the recipe.
        inputs: what it reads, by role.
        section: where `config` stands in the recipe, for messages.
        version: raised when a stage's meaning changes, so that old artifacts are rebuilt.
        volatile: globs of files whose bytes may differ between equal results (timings); left out of `digest`.
    """

    name: str
    stage: str
    config: Config
    inputs: Mapping[str, tuple[StepInput, ...]] = field(default_factory=dict)
    section: str = ""
    version: int = 1
    volatile: tuple[str, ...] = ()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The JSON value whose hash is the fingerprint."""
        return {
            "stage": self.stage,
            "version": self.version,
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
        """Return the step with its unread inputs by content; `digests` are those that the stage took, by path."""
        settled = {
            role: tuple(item.settle(digests) if isinstance(item, UnreadFiles) else item for item in items)
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
