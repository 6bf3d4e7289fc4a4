"""What the members of a soup have in common: nothing is averaged before every difference between them is known.

Each kind of difference is refused unless the config waives it; what was waived is part of the result's record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ladle.errors import UserError
from ladle.soup.config import SoupConfig
from ladle.soup.formats import FLOATS, widest
from ladle.soup.members import Member

MAX_MEMBERS = 1024
NAMED = 3
"""Tensors named in a message or a record, of a longer list."""


@dataclass(frozen=True)
class Comparison:
    """How each tensor of the first member is treated, and the differences that were waived.

    Attributes:
        averaged: dtype of the result of each floating-point tensor that all members have.
        equal: integer, boolean and 8-bit float tensors that all members have; equality is checked as they are read.
        copied: tensors that not all members have, or have alike; the first member's are kept.
        dropped: tensors that the first member does not have.
        waived: differences found, by the config field that accepts them.
    """

    averaged: dict[str, str]
    equal: set[str]
    copied: list[str]
    dropped: list[str]
    waived: dict[str, Any]


def compare_tensors(members: Sequence[Member], config: SoupConfig) -> Comparison:
    """Compare all tensors of all members by name, shape and dtype.

    Raises:
        UserError: a difference that `config` does not waive.
    """
    if len(members) > MAX_MEMBERS:
        raise UserError(f"{len(members)} members are too many", f"average at most {MAX_MEMBERS}")
    differences = _Differences(config)
    _compare_names(members, differences)
    averaged, equal = _compare_shared(members, config, differences)
    differences.refuse()
    first = members[0].files.keys()
    copied = [name for name in first if name not in averaged and name not in equal]
    dropped = sorted({name for member in members for name in member.files} - first)
    return Comparison(averaged, equal, copied, dropped, differences.waived())


def _compare_names(members: Sequence[Member], differences: _Differences) -> None:
    first = members[0].files.keys()
    for member in members[1:]:
        differences.add_names("allow_missing", f"{member.name} lacks", first - member.files.keys())
        differences.add_names("allow_missing", f"{members[0].name} lacks", member.files.keys() - first)


def _compare_shared(
    members: Sequence[Member], config: SoupConfig, differences: _Differences
) -> tuple[dict[str, str], set[str]]:
    """Return the result's dtype of each tensor that can be averaged, and the tensors that must be equal."""
    averaged: dict[str, str] = {}
    equal: set[str] = set()
    for name in members[0].files:
        tensors = [member.tensor(name) for member in members if name in member.files]
        shapes, dtypes = {tensor.shape for tensor in tensors}, {tensor.dtype for tensor in tensors}
        if len(shapes) > 1:
            differences.add("allow_shapes", f"{name} has shapes {sorted(map(list, shapes))}")
        elif len(dtypes) > 1:
            differences.add("allow_dtypes", f"{name} has dtypes {sorted(dtypes)}")
        if len(tensors) < len(members) or len(shapes) > 1:
            continue
        if dtypes <= FLOATS.keys():
            averaged[name] = "F32" if config.dtype == "float32" else widest(dtypes)
        elif len(dtypes) == 1:
            equal.add(name)
    return averaged, equal


class _Differences:
    """Collects differences by the config field that would accept them."""

    def __init__(self, config: SoupConfig) -> None:
        self.config = config
        self.found: dict[str, list[str]] = {}

    def add(self, waiver: str, what: str) -> None:
        self.found.setdefault(waiver, []).append(what)

    def add_names(self, waiver: str, what: str, tensors: set[str]) -> None:
        if tensors:
            some = ", ".join(sorted(tensors)[:NAMED]) + (", …" if len(tensors) > NAMED else "")
            self.add(waiver, f"{what} {len(tensors)} tensors ({some})")

    def refuse(self) -> None:
        """Raise for the first kind of difference that is not waived."""
        for waiver, found in self.found.items():
            if not getattr(self.config, waiver):
                more = f" (and {len(found) - 1} more such differences)" if len(found) > 1 else ""
                raise UserError(f"the members of the soup do not match: {found[0]}{more}", _FIXES[waiver])

    def waived(self) -> dict[str, Any]:
        return {waiver: {"count": len(found), "first": found[:NAMED]} for waiver, found in sorted(self.found.items())}


_FIXES = {
    "allow_missing": "average models of one architecture, or set allow_missing=true to average what all of them have",
    "allow_shapes": "average models of one size, or set allow_shapes=true to keep the first member's tensors there",
    "allow_dtypes": "save the members in one dtype, or set allow_dtypes=true to average them in the wider one",
}
