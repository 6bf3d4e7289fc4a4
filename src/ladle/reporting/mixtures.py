"""The mixtures of a run: what each source gave, what was left out, how long its documents are."""

from __future__ import annotations

import json
from typing import Any

from ladle.reporting.records import Records, of_stage


def collect_mixtures(records: Records) -> list[dict[str, Any]]:
    """Return each mixture's name, sources and splits, as its `mixture.json` has them, with the shares added."""
    return [
        {"name": name} | _with_shares(json.loads((folder / "mixture.json").read_text(encoding="utf-8")))
        for name, folder, _ in of_stage(records, "mix")
    ]


def _with_shares(mixture: dict[str, Any]) -> dict[str, Any]:
    total = mixture["splits"]["train"]["tokens"]
    sources = [
        source
        | {"share": source["train_tokens"] / total if total else 0.0}
        | {"dropped_rows": sum(source["dropped_rows"].values())}
        for source in mixture["sources"]
    ]
    return {"sources": sources, "splits": mixture["splits"]}
