"""Members that fit together: everything that can be known without reading weights is checked here, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.soup.aliases import leave_out_aliases
from ladle.soup.compare_functions import compare_functions
from ladle.soup.compare_tensors import Comparison, compare_tensors
from ladle.soup.config import SoupConfig
from ladle.soup.members import Member, open_members
from ladle.soup.order import check_order, check_repeats


@dataclass(frozen=True)
class Soup:
    """Members that can be averaged with any coefficients.

    Attributes:
        members: in the order of the coefficients.
        comparison: how each tensor is treated.
        waived: the differences that were accepted, by the config field that accepts them.
        config: the settings.
    """

    members: list[Member]
    comparison: Comparison
    waived: dict[str, Any]
    config: SoupConfig


def open_soup(folders: Sequence[Path], config: SoupConfig) -> Soup:
    """Read the members' headers, configs and tokenizers and compare them.

    Raises:
        UserError: members are damaged or differ in a way that `config` does not waive.
    """
    members = leave_out_aliases(open_members(folders))
    comparison = compare_tensors(members, config)
    waived = comparison.waived | check_repeats(members, config) | compare_functions(members, config)
    waived |= check_order(members, config)
    return Soup(members, comparison, waived, config)
