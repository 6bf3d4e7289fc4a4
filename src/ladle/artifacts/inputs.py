"""What a step reads from outside the run: local files by content, Hub repositories by commit.

`InputFinder` is the one place that says what a name in a recipe or on a command line stands for.
"""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from ladle.artifacts.files import hash_file, make_folder, pretty_json, write_text_durably
from ladle.errors import UserError
from ladle.hub import Resolve, is_repo_id, resolve_commit

SMALL_BYTES = 2**20
"""Files up to this size are hashed at once: configs and tokenizers, which a stage need not hash for us."""
PATH_SUFFIXES = frozenset((
    ".arrow", ".bz2", ".csv", ".gguf", ".gz", ".json", ".jsonl", ".md", ".ndjson", ".parquet", ".py", ".safetensors",
    ".tsv", ".txt", ".xz", ".yaml", ".yml", ".zip", ".zst",
))  # fmt: skip
"""Ends of names that no repository of the Hub has."""
Signature = tuple[int, int]
"""Size in bytes and modification time in nanoseconds: a file that keeps both is taken to be the same file."""


def signature_of(path: Path) -> Signature:
    """Return what a file is recognised by."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class FileHashes:
    """Remembers the blake3 of files, so that planning twice does not read 100 GB twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._has_new = False

    def find(self, path: Path) -> str | None:
        """Return the file's blake3 if it is known for the size and modification time that the file has."""
        *signature, digest = self._known.get(str(path.absolute()), (None,))
        return digest if signature == [*signature_of(path)] else None

    def hash(self, path: Path) -> str:
        """Return the file's blake3, read again only where its size or modification time changed."""
        known = self.find(path)
        if known is None:
            signature, known = signature_of(path), hash_file(path)
            self.learn(path, signature, known)
        return known

    def learn(self, path: Path, signature: Signature, digest: str) -> None:
        """Remember the blake3 of a file that had this signature before and after it was read."""
        self._known[str(path.absolute())] = [*signature, digest]
        self._has_new = True

    def save(self) -> None:
        """Keep what was learnt for the next plan."""
        if self._has_new:
            make_folder(self.path.parent)
            write_text_durably(self.path, pretty_json(self._known))
            self._has_new = False


class LocalFile(NamedTuple):
    """One file: its path, its name in the folder that was given ("" if it was given itself), and what it is.

    The digest is None until the stage that reads the file hashes it meanwhile, so that it is read once.
    """

    path: str
    name: str
    signature: Signature
    digest: str | None = None


@dataclass(frozen=True)
class LocalFiles:
    """Files or folders outside the run.

    Attributes:
        paths: what the stage is given.
        files: every file of them.
        hashes: where digests are kept.
    """

    paths: tuple[Path, ...]
    files: tuple[LocalFile, ...] = ()
    hashes: FileHashes | None = field(default=None, compare=False, repr=False)

    def identity(self) -> Any:
        """Return what enters the fingerprint: content only, in order, so that moving the data changes nothing.

        Until all of it is known the files are named by place, size and time, which names the unfinished build.
        """
        if all(file.digest for file in self.files):
            return {"content": [[file.name, file.digest] for file in self.files]}
        return {"unread": [[str(Path(file.path).absolute()), *file.signature] for file in self.files]}

    def settle(self, digests: Mapping[str, str]) -> LocalFiles:
        """Return the files by content: by the digest where there is one, else hashed now.

        Raises:
            UserError: a file is no longer what it was when the step was planned.
        """
        if self.hashes is None or all(file.digest for file in self.files):
            return self
        for path, _, signature, _ in self.files:
            if signature_of(Path(path)) != signature:
                raise changed_meanwhile(path)
            if path in digests:
                self.hashes.learn(Path(path), signature, digests[path])
        files = tuple(file._replace(digest=self.hashes.hash(Path(file.path))) for file in self.files)
        self.hashes.save()
        return replace(self, files=files)


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
        file: the only file of it that the stage reads; nothing else is fetched then.
        patterns: globs of the files that the stage reads, unless it reads all; nothing else is fetched then.
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


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Sort key by which checkpoint-900 comes before checkpoint-1000."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(path))]


def find_local(reference: str) -> tuple[Path, ...]:
    """Return the file, folder or sorted matches of the glob that `reference` names; empty where it names none."""
    path = Path(reference).expanduser()
    if path.exists():
        return (path,)
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return tuple(sorted(map(Path, matches), key=natural_key))


def names_hub(reference: str) -> bool:
    """Whether a name that nothing here has is meant as a repository of the Hub rather than as a path.

    A path begins with `.`, `/` or `~`, ends like a data file, or has an existing folder before its last part.
    """
    return _may_name_hub(reference) and not Path(reference).parent.is_dir()


def _may_name_hub(reference: str) -> bool:
    repo_id = reference.partition(":")[0]
    return is_repo_id(repo_id) and Path(repo_id).suffix not in PATH_SUFFIXES


class InputFinder:
    """Finds what a name stands for: files on this machine, or else a repository of the Hub at a commit."""

    def __init__(self, root: Path, resolve: Resolve = resolve_commit) -> None:
        self.hashes = FileHashes(root / ".file-hashes.json")
        self.resolve = resolve

    def find(
        self,
        kind: str,
        reference: str,
        key: str,
        revision: str | None = None,
        file: str | None = None,
        patterns: tuple[str, ...] = (),
        known: tuple[str, ...] = (),
    ) -> LocalFiles | HubRepository:
        """Return the input that a name stands for.

        Args:
            kind: `model` or `dataset`.
            reference: a path, a glob, or a Hub id, of a dataset `org/name:subset`.
            key: where the recipe says so, for messages.
            revision: branch, tag or commit of a Hub id.
            file: the only file of the repository that is read.
            patterns: globs of the only files of the repository that are read.
            known: other names that could have been meant.

        Raises:
            UserError: it names nothing, or files of this machine at a revision.
        """
        if paths := find_local(reference):
            if revision is not None:
                problem = f"{key} is at {reference} on this machine and has a revision ({revision})"
                raise UserError(problem, "remove the revision (on the command line: set it to null), or name a Hub id")
            return self.local(paths)
        repo_id, _, subset = reference.partition(":")
        if _may_name_hub(reference):
            try:
                commit = self.resolve(kind, repo_id, revision)
            except UserError:
                if names_hub(reference):
                    raise
            else:
                return HubRepository(kind, repo_id, commit, subset or None, file, patterns, revision)
        path = Path(reference)
        close = difflib.get_close_matches(path.parent.name or reference, known, n=1)
        beside = path.expanduser().parent.glob("[!.]*") if path.name else ()
        names = [*known, *(str(path.with_name(one.name)) for one in beside if one.suffix not in (".yaml", ".yml"))]
        by_stem = {Path(name).stem: name for name in names}  # a common suffix does not make names close
        close = close or [by_stem[stem] for stem in difflib.get_close_matches(path.stem, by_stem, n=1)]
        is_path = path.suffix in PATH_SUFFIXES or len(path.parts) > 1 or reference.startswith((".", "~"))
        fix = "name an existing path or glob" if is_path else "name an existing path or glob, or a Hub id org/name"
        fix += "" if path.is_absolute() else f" (looked in {Path.cwd()}, where the command runs)"
        raise UserError(f"there is no {kind} at {reference} ({key})", f"did you mean {close[0]!r}?" if close else fix)

    def local(self, paths: tuple[Path, ...], ignore: tuple[str, ...] = (), unread: bool = False) -> LocalFiles:
        """Describe files and folders by content.

        A folder stands for all files below it; hidden ones, record.json and those that match `ignore` are left out.
        Where they may stay `unread`, large files of unknown content are hashed by the stage that reads them.

        Raises:
            UserError: a folder that holds no file.
        """
        files = []
        for path, name in list_inputs(paths, ignore):
            signature = signature_of(path)
            hash_now = self.hashes.find if unread and signature[0] > SMALL_BYTES else self.hashes.hash
            files.append(LocalFile(str(path), name, signature, hash_now(path)))
        self.hashes.save()
        return LocalFiles(paths, tuple(files), self.hashes)


def list_inputs(paths: tuple[Path, ...], ignore: tuple[str, ...] = ()) -> Iterator[tuple[Path, str]]:
    """Yield every file that `paths` stand for, with its name in the folder that was given."""
    for path in paths:
        if path.is_file():
            yield path, ""
            continue
        found = False
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            is_hidden = any(part.startswith(".") for part in relative.parts)
            is_ignored = any(fnmatch(relative.as_posix(), pattern) for pattern in ignore)
            if file.is_file() and file.name != "record.json" and not is_hidden and not is_ignored:
                found = True
                yield file, relative.as_posix()
        if not found:
            raise UserError(f"{path} holds no files", "name a folder or file with data in it")
