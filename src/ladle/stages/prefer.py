"""Join preference data into one dataset of prompt, completion and label, which `datasets.load_from_disk` opens."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars

from ladle.data.preference import COLUMNS, join_rows, unpaired_rows
from ladle.data.preference_config import PreferConfig
from ladle.data.read_rows import read_rows
from ladle.errors import UserError

DATASET = "preference"

disable_progress_bars()


def run(config: PreferConfig, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Read the sources in order (inputs `source:0`, `source:1`, …) and write `preference/`."""
    rows: list[dict[str, Any]] = []
    bad: Counter[str] = Counter()
    for index, source in enumerate(config.data):
        split = "train" if source.dataset == "rollouts" else source.split
        rows += unpaired_rows(islice(read_rows(inputs[f"source:{index}"], split), source.limit), source, bad)
    rows, counters = join_rows(rows, bad, config)
    _refuse_mixed_forms(rows)
    shutil.rmtree(out / DATASET, ignore_errors=True)
    Dataset.from_list([{name: row[name] for name in COLUMNS} for row in rows]).save_to_disk(out / DATASET)
    num_desirable = sum(row["label"] for row in rows)
    counters |= {"desirable": num_desirable, "undesirable": len(rows) - num_desirable}
    return {"counters": counters}


def _refuse_mixed_forms(rows: list[dict[str, Any]]) -> None:
    forms = {"text" if isinstance(row["prompt"], str) else "messages" for row in rows}
    if len(forms) > 1:
        raise UserError("some preference sources hold text and others messages", "bring them to one form")
