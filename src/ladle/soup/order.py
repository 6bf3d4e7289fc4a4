"""Whether the list of members is what was meant: none is named twice, and where order matters, they stand in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.soup.config import SoupConfig
from ladle.soup.members import Member

STEP = re.compile(r"^checkpoint-(\d+)$")


def check_repeats(members: Sequence[Member], config: SoupConfig) -> dict[str, Any]:
    """Look for folders that are members twice, say by two globs; return what was waived, by the field that accepts it.

    Raises:
        UserError: there is one, and `config` does not waive it.
    """
    first: dict[Path, Member] = {}
    repeated = [
        f"{member.name} and {known.name} are both {member.folder}"
        for member in members
        if (known := first.setdefault(member.folder.resolve(), member)) is not member
    ]
    if repeated and not config.allow_repeats:
        raise UserError(
            f"a member is named twice: {repeated[0]}",
            "name it once, or set allow_repeats=true to let it count twice (method=weighted sets shares)",
        )
    return {"allow_repeats": {"count": len(repeated), "first": repeated[:3]}} if repeated else {}


def check_order(members: Sequence[Member], config: SoupConfig) -> dict[str, Any]:
    """Compare the step numbers of checkpoints of one folder; return what was waived, by the field that accepts it.

    Raises:
        UserError: they do not rise, order matters, and `config` does not waive it.
    """
    if config.method == "uniform" and config.select == "none":
        return {}
    wrong = [
        f"{later.name} comes after {earlier.name}" for earlier, later in pairwise(members) if _falls(earlier, later)
    ]
    if wrong and not config.allow_order:
        raise UserError(
            f"the members are not in the order of their steps: {wrong[0]}",
            "name them oldest first (a folder of checkpoints or a quoted glob does), or set allow_order=true",
        )
    return {"allow_order": {"count": len(wrong), "first": wrong[:3]}} if wrong else {}


def _falls(earlier: Member, later: Member) -> bool:
    (here, first), (there, second) = _place(earlier), _place(later)
    return here == there and first is not None and second is not None and second <= first


def _place(member: Member) -> tuple[Path, int | None]:
    """Return the folder of a checkpoint and its step."""
    folder = member.folder.resolve()
    folder = folder.parent if folder.name == "model" else folder
    match = STEP.match(folder.name)
    return folder.parent, int(match[1]) if match else None
