"""The Hugging Face Hub: commits and snapshots, by `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the cache of huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path

from ladle.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_repo_id(reference: str) -> bool:
    """Tell whether `reference` has the form `org/name` of a Hub repository."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", reference) is not None


def resolve_commit(kind: str, repo_id: str, revision: str | None) -> str:
    """Return the commit a branch or tag stands for now.

    Args:
        kind: `model` or `dataset`.
        repo_id: `org/name`.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        UserError: the repository cannot be reached or does not exist.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        commit = HfApi().repo_info(repo_id, repo_type=kind, revision=revision).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"cannot look up {kind} {repo_id} (revision {revision or 'main'}) on the Hub: {_first_line(error)}",
            "check the name and the network (HF_ENDPOINT sets a mirror), "
            "or pin `revision:` to a commit that is already cached",
        ) from error
    if commit is None:
        raise UserError(f"the Hub names no commit for {repo_id}", "pin `revision:` to a 40-digit commit")
    return commit


def snapshot(kind: str, repo_id: str, commit: str) -> Path:
    """Download (or find in the cache) a repository at a commit and return its folder.

    Raises:
        UserError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, repo_type=kind, revision=commit))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"cannot fetch {kind} {repo_id} at {commit[:12]}: {_first_line(error)}",
            "check access (a gated repository needs `hf auth login`), the network and free disk, "
            "then run the same command again",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
