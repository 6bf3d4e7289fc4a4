"""Join preference data into one dataset of prompt, completion and label, which `datasets.load_from_disk` opens."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

from datasets import Dataset, DatasetDict, disable_progress_bars

from ladle.data.files import splits_of
from ladle.data.preference.config import EVERY_SPLIT, ROLLOUTS, TRAIN, PreferConfig, PreferenceSource
from ladle.data.preference.rows import COLUMNS, Row, count_labelled_both_ways, join_rows, unpaired_rows
from ladle.data.rows import read_rows
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)
DATASET = "preference"

disable_progress_bars()


def run(config: PreferConfig, inputs: Inputs, out: Path) -> StageResult:
    """Read the sources in order (inputs `source:0`, `source:1`, …) and write every split of `preference/`."""
    rows: dict[str, list[Row]] = defaultdict(list)
    bad: dict[str, Counter[str]] = defaultdict(Counter)
    for index, source in enumerate(config.data):
        paths = inputs[f"source:{index}"]
        for split, into in _splits(source, paths):
            read = islice(read_rows(paths, split), source.limit)
            rows[into] += unpaired_rows(read, source, bad[into])
    counters: dict[str, int] = {}
    splits = {}
    as_they_are = config.model_copy(update={"balance": False})  # what is evaluated on is not picked over
    for split in sorted(rows, key=lambda name: (name != TRAIN, name)):
        _say_bad(split, bad[split])
        kept, counts = join_rows(rows[split], bad[split], config if split == TRAIN else as_they_are)
        counts |= _count_labels(kept)
        _say_contradictions(split, kept)
        counters |= counts if split == TRAIN else {f"{split}: {name}": count for name, count in counts.items()}
        splits[split] = Dataset.from_list([{name: row[name] for name in COLUMNS} for row in kept])
        rows[split] = kept
    _refuse_mixed_forms([row for kept in rows.values() for row in kept])
    shutil.rmtree(out / DATASET, ignore_errors=True)
    DatasetDict(splits).save_to_disk(out / DATASET)
    return StageResult(counters)


def _splits(source: PreferenceSource, paths: list[Path]) -> list[tuple[str, str]]:
    """Return the splits of a source to read, each with the one its rows go to."""
    if source.dataset == ROLLOUTS:
        return [(TRAIN, source.into)]
    if source.split == EVERY_SPLIT:
        return [(split, split) for split in splits_of(paths)]
    return [(source.split, source.into)]


def _count_labels(rows: list[Row]) -> dict[str, int]:
    num_desirable = sum(row["label"] for row in rows)
    return {"desirable": num_desirable, "undesirable": len(rows) - num_desirable}


def _say_bad(split: str, bad: Counter[str]) -> None:
    for reason, count in bad.most_common():
        logger.warning("%d rows of %s left out: %s", count, split, reason)


def _say_contradictions(split: str, rows: list[Row]) -> None:
    if count := count_labelled_both_ways(rows):
        logger.warning(
            "%d completions of %s are labelled True in one row and False in another; both stay", count, split
        )


def _refuse_mixed_forms(rows: list[Row]) -> None:
    forms = {"text" if isinstance(row["prompt"], str) else "messages" for row in rows}
    if len(forms) > 1:
        raise UserError("some preference sources hold text and others messages", "bring them to one form")
