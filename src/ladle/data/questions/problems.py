"""Questions with known answers, read from a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.data.rows import read_rows
from ladle.errors import UserError


def rows_of_problems(
    dataset: str, paths: list[Path], split: str, first: int, limit: int | None
) -> list[dict[str, Any]]:
    """Return `limit` rows from number `first` on, starting over past the last one; all of them where limit is unset.

    Raises:
        UserError: the split is empty.
    """
    rows = list(read_rows(paths, split))
    if not rows:
        raise UserError(f"{dataset} holds no problems in split {split!r}", "name another dataset or split")
    return [rows[number % len(rows)] for number in range(first, first + (limit or len(rows)))]
