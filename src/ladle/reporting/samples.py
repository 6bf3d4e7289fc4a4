"""What the models say: each one's completion of the first item of each benchmark."""

from __future__ import annotations

import json
from typing import Any

from ladle.reporting.records import Records, model_of, of_stage


def collect_samples(records: Records) -> list[dict[str, Any]]:
    """Return one row a model and benchmark."""
    rows = []
    for name, folder, _ in of_stage(records, "evaluate"):
        for path in sorted(folder.glob("*/*_result.jsonl")):
            with path.open(encoding="utf-8") as lines:
                row = json.loads(next(lines, "null"))
            if row is not None:
                rows.append(
                    {
                        "model": model_of(name),
                        "question": row["question"],
                        "completion": row["code"][0],
                        "gold": row["gt"],
                        "verdict": "right" if row["score"][0] else "wrong",
                    }
                )
    return rows
