"""The Hugging Face Hub: commits, downloads, uploads.

Everything goes through huggingface_hub, so HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_TOKEN and HF_HOME mean what they
mean there, and a download that broke off resumes where it was. What it does not do is done here: the bytes on disk are
compared with the Hub's checksums (sha256 of large files, git's of small ones), and every refusal becomes one message
that says what to do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ladle.errors import UserError

COMMITS = "LADLE_HUB_COMMITS"
"""Environment variable: a JSON file of the commits that names are pinned to, so that all jobs of a launch agree."""
Resolve = Callable[[str, str, str | None], str]
"""From kind, repository and revision to the commit that it names."""


class HubUnreachable(UserError):
    """The Hub cannot be asked: no network, or HF_HUB_OFFLINE and nothing in the cache."""


def is_repo_id(reference: str) -> bool:
    """Whether `reference` has the form `org/name` of a Hub repository."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", reference) is not None


def is_commit(revision: str) -> bool:
    """Whether `revision` is a whole commit id, which never changes its meaning."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def endpoint() -> str:
    """Return the address of the Hub: HF_ENDPOINT, or the Hub's own."""
    from huggingface_hub import HfApi

    return HfApi().endpoint


def name_of(kind: str, repo_id: str, revision: str | None) -> str:
    """Return what a branch or tag of a repository is called in the file that COMMITS names."""
    return f"{kind} {repo_id} {revision or 'main'}"


def resolve_commit(kind: str, repo_id: str, revision: str | None) -> str:
    """Return the commit that a branch or tag names now, or named when last asked where there is no network.

    Args:
        kind: `model` or `dataset`.
        repo_id: `org/name`.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        UserError: the repository cannot be reached, does not exist, or is not open to this user.
    """
    if revision and is_commit(revision):
        return revision
    if path := os.environ.get(COMMITS):
        pinned = json.loads(Path(path).read_text(encoding="utf-8"))
        if commit := pinned.get(name_of(kind, repo_id, revision)):
            return commit
    from huggingface_hub import HfApi

    with _faults_explained(kind, repo_id, revision or "main"):
        return HfApi().resolve_revision(repo_id, repo_type=kind, revision=revision).resolved


def snapshot(kind: str, repo_id: str, commit: str, file: str | None = None, patterns: Sequence[str] = ()) -> Path:
    """Download (or find in the cache) a repository at a commit, and return its path.

    Args:
        kind: `model` or `dataset`.
        repo_id: `org/name`.
        commit: the whole commit id.
        file: the one file to fetch; its own path is returned.
        patterns: globs of the only files to fetch; empty fetches all.

    Raises:
        UserError: it cannot be fetched, or its bytes are not the Hub's.
    """
    from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download

    with _faults_explained(kind, repo_id, commit[:12]):
        if file is not None:
            path = Path(hf_hub_download(repo_id, file, repo_type=kind, revision=commit))
            folder = path.parents[file.count("/")]
        else:
            only = list(patterns) or None
            path = folder = Path(snapshot_download(repo_id, repo_type=kind, revision=commit, allow_patterns=only))
        if is_offline_mode():  # nothing to compare with
            return path
        mismatches = HfApi().verify_repo_checksums(repo_id, repo_type=kind, revision=commit).mismatches
    for fault in mismatches:  # removed, so that the next try fetches them again
        damaged = folder / fault["path"]
        damaged.resolve().unlink()
        damaged.unlink(missing_ok=True)
    if mismatches:
        names = ", ".join(f"{one['path']} ({one['algorithm']} {one['actual'][:12]}…)" for one in mismatches)
        problem = f"{names} of {kind} {repo_id} came with other bytes than the Hub has, and is removed from the cache"
        fix = "run the same command again to fetch it again; if it comes back, the mirror or the disk is at fault"
        raise UserError(problem, fix)
    return path


def files_of(kind: str, repo_id: str, commit: str) -> dict[str, int]:
    """Return the bytes of each file of a repository at a commit, by path.

    Raises:
        UserError: it is not open to this user, or cannot be reached.
    """
    from huggingface_hub import HfApi, RepoFile

    with _faults_explained(kind, repo_id, commit[:12]):
        tree = HfApi().list_repo_tree(repo_id, recursive=True, repo_type=kind, revision=commit)
        return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}


def size_of(kind: str, repo_id: str, commit: str, file: str | None = None) -> int | None:
    """Return the bytes of a repository at a commit, or of one file of it; None offline, where the cache has it.

    Raises:
        UserError: it is not open to this user, the commit or the file does not exist, or (offline) the cache lacks it.
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        snapshot(kind, repo_id, commit, file)
        return None
    sizes = files_of(kind, repo_id, commit)
    if file is not None and file not in sizes:
        raise UserError(f"{kind} {repo_id} at {commit[:12]} has no file {file}", "pin a `revision:` that has it")
    return sum(sizes.values()) if file is None else sizes[file]


def card_of(kind: str, repo_id: str, commit: str) -> dict[str, Any]:
    """Return the header of a repository's card at a commit (licence, language, …); empty if it has no card.

    Raises:
        UserError: it is not open to this user, cannot be reached, or its header cannot be read.
    """
    from huggingface_hub import errors, hf_hub_download

    with _faults_explained(kind, repo_id, commit[:12]):
        try:
            path = hf_hub_download(repo_id, "README.md", repo_type=kind, revision=commit)
        except errors.RemoteEntryNotFoundError:
            return {}
    return read_card(Path(path))


def read_card(path: Path) -> dict[str, Any]:
    """Return the header of a card, the README.md of a repository or of a folder that was one; empty if it has none.

    Raises:
        UserError: it is not YAML of keys and values.
    """
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"the header of {path} cannot be read: {_first_line(error)}", "correct it, or remove it"
        ) from error


def upload(kind: str, repo_id: str, folder: Path, message: str, private: bool) -> str:
    """Create the repository where there is none, put every file of `folder` into one commit, and return its URL.

    Raises:
        UserError: there is no right to write, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _faults_explained(kind, repo_id, "main", verb="push"):
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, repo_type=kind, folder_path=folder, commit_message=message).commit_url


@contextmanager
def _faults_explained(kind: str, repo_id: str, revision: str, verb: str = "fetch") -> Iterator[None]:
    """Turn what huggingface_hub raises into one message with its fix; the verb says what was tried."""
    import httpx2  # what huggingface_hub speaks HTTP with; its connection errors are not OSErrors
    from huggingface_hub import errors, is_offline_mode

    try:
        yield
    except (OSError, httpx2.HTTPError, errors.RevisionResolutionError) as error:
        what, kind_of_error = f"{kind} {repo_id}", UserError
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) and error.response else None
        not_cached = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.RevisionResolutionError)
        if verb == "push" and (status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError)):
            problem = f"{_who()} may not write to {what} on {endpoint()}"
            fix = "run `hf auth login` with a token that can write (or set HF_TOKEN), and name a repository of your own"
        elif is_offline_mode() and isinstance(error, not_cached):
            problem = f"{what} at {revision} is not in the cache, and HF_HUB_OFFLINE is set"
            fix = f"fetch it once with a network: hf download {repo_id} --repo-type {kind}; or unset HF_HUB_OFFLINE"
            kind_of_error = HubUnreachable
        elif isinstance(error, errors.GatedRepoError):
            problem = f"{what} is gated, and {_who()} has no access to it"
            page = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
            fix = f"ask for access at {page}, then run `hf auth login` (or set HF_TOKEN), and this again"
        elif isinstance(error, errors.RevisionNotFoundError):
            problem, fix = f"{what} has no revision {revision}", "name a branch, tag or commit it has"
        elif isinstance(error, errors.RemoteEntryNotFoundError):
            problem = f"{what} at {revision} lacks a file: {_first_line(error)}"
            fix = "check the file's name, or pin another `revision:`"
        elif isinstance(error, errors.RepositoryNotFoundError):
            problem = f"there is no {what} on {endpoint()}, or it is private and {_who()} may not see it"
            fix = "check the name; for a private one run `hf auth login` (or set HF_TOKEN)"
        else:
            problem = f"cannot {verb} {what} at {revision} from {endpoint()}: {_first_line(error)}"
            fix = "check network and free disk (HF_ENDPOINT names a mirror), then run the same command again to resume"
            kind_of_error = HubUnreachable
        raise kind_of_error(problem, fix) from error


def _who() -> str:
    from huggingface_hub import get_token

    return "the logged-in user" if get_token() else "an anonymous user"


def _first_line(error: BaseException) -> str:
    while isinstance(error.__cause__, OSError) and not str(error).strip():
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
