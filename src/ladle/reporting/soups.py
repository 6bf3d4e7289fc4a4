"""The soups of a run: members and coefficients, and the candidates where one was selected."""

from __future__ import annotations

import json
from typing import Any

from ladle.reporting.records import Records, of_stage


def collect_soups(records: Records) -> list[dict[str, Any]]:
    """Return each soup's name, method, members and selection, as its `merge_info.json` has them."""
    soups = []
    for name, folder, record in of_stage(records, "soup"):
        info = json.loads((folder / "merge_info.json").read_text(encoding="utf-8"))
        soups.append({"name": name, "counters": record["counters"]} | info)
    return soups
