"""The Hugging Face Hub: commits, downloads, uploads.

Everything goes through huggingface_hub, so HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_TOKEN and HF_HOME mean what they
mean there; a download that broke off goes on from where it was. What it does not do is done here: the bytes on disk
are compared with the Hub's checksums (sha256 of large files, git's of small ones), and every refusal becomes one
message that says what to do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ladle.errors import UserError
from ladle.log import get_logger

logger = get_logger(__name__)

COMMITS = "LADLE_HUB_COMMITS"
"""Environment variable: a JSON file of commits that names stand for, so that all jobs of a launch read the same."""
Resolve = Callable[[str, str, str | None], str]
"""From kind, repository and revision to the commit that stands for it."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubUnreachable(UserError):
    """The Hub cannot be asked: no network, or HF_HUB_OFFLINE and nothing in the cache."""


def is_repo_id(reference: str) -> bool:
    """Tell whether `reference` has the form `org/name` of a Hub repository."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", reference) is not None


def is_commit(revision: str) -> bool:
    """Tell whether `revision` is a whole commit id, which never changes its meaning."""
    return _COMMIT.fullmatch(revision) is not None


def name_of(kind: str, repo_id: str, revision: str | None) -> str:
    """Return what a branch or tag of a repository is called in the file that COMMITS names."""
    return f"{kind} {repo_id} {revision or 'main'}"


def resolve_commit(kind: str, repo_id: str, revision: str | None) -> str:
    """Return the commit a branch or tag stands for now, or stood for when last asked where there is no network.

    Args:
        kind: `model` or `dataset`.
        repo_id: `org/name`.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        UserError: the repository cannot be reached, does not exist, or is closed to us.
    """
    if revision and is_commit(revision):
        return revision
    if fixed := _fixed_commit(kind, repo_id, revision):
        return fixed
    remembered = _remembered_commit(kind, repo_id, revision or "main")
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode() and remembered.is_file():
        return remembered.read_text(encoding="utf-8").strip()
    try:
        commit = HfApi().repo_info(repo_id, repo_type=kind, revision=revision).sha
    except _hub_errors() as error:
        _explain(error, kind, repo_id, revision or "main")
    if commit is None:
        raise UserError(f"the Hub names no commit for {repo_id}", "pin `revision:` to a 40-digit commit")
    remembered.parent.mkdir(parents=True, exist_ok=True)
    remembered.write_text(commit, encoding="utf-8")
    return commit


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
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if file is not None:
            path = Path(hf_hub_download(repo_id, file, repo_type=kind, revision=commit))
            folder = path.parents[file.count("/")]
        else:
            only = list(patterns) or None
            path = folder = Path(snapshot_download(repo_id, repo_type=kind, revision=commit, allow_patterns=only))
        _verify(kind, repo_id, commit, folder)
    except _hub_errors() as error:
        _explain(error, kind, repo_id, commit[:12])
    return path


def upload(kind: str, repo_id: str, folder: Path, message: str, private: bool) -> str:
    """Create the repository where there is none, put every file of `folder` into one commit, and return its URL.

    Raises:
        UserError: there is no right to write, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, repo_type=kind, folder_path=folder, commit_message=message).commit_url
    except _hub_errors() as error:
        _explain_upload(error, kind, repo_id)


def _verify(kind: str, repo_id: str, commit: str, folder: Path) -> None:
    """Compare the files in `folder`, a snapshot in the cache, with the Hub's checksums.

    A damaged file is removed, so that the next try fetches it again. Offline there is nothing to compare with.
    """
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        return
    seen = HfApi().verify_repo_checksums(repo_id, repo_type=kind, revision=commit)
    for fault in seen.mismatches:
        file = folder / fault["path"]
        file.resolve().unlink()
        file.unlink(missing_ok=True)
    if seen.mismatches:
        first = seen.mismatches[0]
        names = ", ".join(fault["path"] for fault in seen.mismatches)
        raise UserError(
            f"{names} of {kind} {repo_id} came with other bytes than the Hub has ({first['algorithm']} "
            f"{first['actual'][:12]}…, not {first['expected'][:12]}…), and is removed from the cache",
            "run the same command again to fetch it anew; if it comes back, the mirror or the disk is at fault",
        )


def _fixed_commit(kind: str, repo_id: str, revision: str | None) -> str | None:
    path = os.environ.get(COMMITS)
    return json.loads(Path(path).read_text(encoding="utf-8")).get(name_of(kind, repo_id, revision)) if path else None


def _remembered_commit(kind: str, repo_id: str, revision: str) -> Path:
    """Return huggingface_hub's own note of what a branch stood for, in its cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=kind) / "refs" / revision


def _hub_errors() -> tuple[type[Exception], ...]:
    import httpx2  # what huggingface_hub speaks HTTP with; its connection errors are not OSErrors
    from huggingface_hub.errors import RevisionResolutionError

    return (OSError, httpx2.HTTPError, RevisionResolutionError)


def _explain(error: Exception, kind: str, repo_id: str, revision: str) -> NoReturn:
    from huggingface_hub import constants, errors

    what = f"{kind} {repo_id}"
    if isinstance(error, UserError):
        raise error
    reasons: dict[Any, tuple[str, str]] = {
        errors.GatedRepoError: (
            f"{what} is gated, and {_who()} has no access to it",
            f"ask for access at {_page(kind, repo_id)}, then run `hf auth login` (or set HF_TOKEN), and this again",
        ),
        errors.RevisionNotFoundError: (f"{what} has no revision {revision}", "name a branch, tag or commit it has"),
        errors.EntryNotFoundError: (
            f"{what} at {revision} lacks a file: {_first_line(error)}",
            "check the file's name, or pin another `revision:`",
        ),
        errors.RepositoryNotFoundError: (
            f"there is no {what} on {constants.ENDPOINT}, or it is private and {_who()} may not see it",
            "check the name; for a private one run `hf auth login` (or set HF_TOKEN)",
        ),
    }
    offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    if constants.is_offline_mode() and isinstance(error, offline):
        raise HubUnreachable(
            f"{what} at {revision} is not in the cache, and HF_HUB_OFFLINE is set",
            f"fetch it once with a network: hf download {repo_id} --repo-type {kind}; or unset HF_HUB_OFFLINE",
        ) from error
    for kind_of_error, (problem, fix) in reasons.items():
        if isinstance(error, kind_of_error) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise UserError(problem, fix) from error
    raise HubUnreachable(
        f"cannot fetch {what} at {revision} from {constants.ENDPOINT}: {_first_line(error)}",
        "check the network and free disk (HF_ENDPOINT names a mirror), then run the same command again to go on",
    ) from error


def _explain_upload(error: Exception, kind: str, repo_id: str) -> NoReturn:
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) and error.response else None
    if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        raise UserError(
            f"{_who()} may not write to {kind} {repo_id} on {constants.ENDPOINT}",
            "run `hf auth login` with a token that can write (or set HF_TOKEN), and name a repository of your own",
        ) from error
    raise UserError(
        f"cannot push to {kind} {repo_id} on {constants.ENDPOINT}: {_first_line(error)}",
        "check the network, then run the same command again; what was uploaded is not sent twice",
    ) from error


def _who() -> str:
    from huggingface_hub import get_token

    return "the logged-in user" if get_token() else "an anonymous user"


def _page(kind: str, repo_id: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def _first_line(error: BaseException) -> str:
    while isinstance(error.__cause__, OSError) and not str(error).strip():
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def endpoint() -> str:
    """Return the address that is asked: HF_ENDPOINT, or the Hub's own."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def size_of(kind: str, repo_id: str, commit: str, file: str | None = None) -> int | None:
    """Return the bytes of a repository at a commit, or of one file of it; None offline, where the cache has it.

    Raises:
        UserError: it is closed to us, the commit or the file does not exist, or (offline) it is not in the cache.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        snapshot(kind, repo_id, commit, file)
        return None
    sizes = files_of(kind, repo_id, commit)
    if file is not None and file not in sizes:
        raise UserError(f"{kind} {repo_id} at {commit[:12]} has no file {file}", "pin a `revision:` that has it")
    return sizes[file] if file is not None else sum(sizes.values())


def files_of(kind: str, repo_id: str, commit: str) -> dict[str, int]:
    """Return the bytes of each file of a repository at a commit, by path.

    Raises:
        UserError: it is closed to us, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = HfApi().list_repo_tree(repo_id, recursive=True, repo_type=kind, revision=commit)
        return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    except _hub_errors() as error:
        _explain(error, kind, repo_id, commit[:12])
