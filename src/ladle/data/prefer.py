"""Joins preference data into one dataset in TRL's unpaired form, which `datasets.load_from_disk` opens: `prompt`,
`completion` (text, or messages with all their keys) and `label`, and `EXTRA_COLUMNS` where some row has them.

How a row becomes examples is in `ladle.data.preference`. A row that cannot be used is counted by reason and, past a cap
for each source, the source is refused; it is never repaired in silence.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from blake3 import blake3

from ladle.artifacts.files import canonical_json
from ladle.data.config import EVERY_SPLIT, ROLLOUTS, TRAIN, PreferConfig, PreferenceSource, mixed_forms
from ladle.data.files import find_data_files, splits_of
from ladle.data.preference import COLUMNS, CUT, EXTRA_COLUMNS, Findings, Row, unpaired_rows
from ladle.data.rows import scan_files
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)

DATASET = "preference"


def run(config: PreferConfig, inputs: Inputs, out: Path) -> StageResult:
    """Read the sources in order (inputs `source:0`, `source:1`, …) and write every split of `preference/`."""
    from datasets import DatasetDict, disable_progress_bars

    rows: dict[str, list[Row]] = defaultdict(list)
    bad: dict[str, Counter[str]] = defaultdict(Counter)
    form_of: dict[type, PreferenceSource] = {}
    read: dict[str, set[Path]] = defaultdict(set)
    for index, source in enumerate(config.data):
        role = f"source:{index}"
        for split, into in _splits(source, inputs[role]).items():
            findings = Findings()
            files = find_data_files(inputs[role], split)
            read[role] |= {file.path for file in files}
            placed = islice(scan_files(files), source.limit)
            for row in unpaired_rows(placed, source, findings):
                form_of.setdefault(type(row["prompt"]), source)
                if len(form_of) > 1:
                    raise mixed_forms(form_of[str].dataset, form_of[list].dataset)
                rows[into].append(row)
            _report(source, split, findings, config.max_bad_fraction)
            bad[into] += findings.bad
    counters: dict[str, int] = {}
    datasets = DatasetDict()
    as_they_are = config.model_copy(update={"balance": False})  # what is evaluated on is not picked over
    disable_progress_bars()
    for split in sorted(rows.keys() | bad.keys(), key=lambda name: (name != TRAIN, name)):
        kept, counts = join_rows(rows[split], bad[split], config if split == TRAIN else as_they_are)
        num_desirable = sum(row["label"] for row in kept)
        counts |= {"desirable": num_desirable, "undesirable": len(kept) - num_desirable}
        if cut := counts.get("cut_completions"):
            logger.warning("%d cut completions of %s are left out (kto.cut_completions: drop)", cut, split)
        if count := count_labelled_both_ways(kept):
            logger.warning(
                "%d completions of %s are labelled True in one row and False in another; both stay", count, split
            )
        counters |= counts if split == TRAIN else {f"{split}: {name}": count for name, count in counts.items()}
        datasets[split] = _dataset(kept)
    shutil.rmtree(out / DATASET, ignore_errors=True)
    datasets.save_to_disk(out / DATASET)
    return StageResult(counters, files_read=read)


def _splits(source: PreferenceSource, paths: list[Path]) -> dict[str, str]:
    """Return the split of the result that each of a source's splits goes to."""
    if source.dataset == ROLLOUTS or source.split != EVERY_SPLIT:
        return {source.split: source.into}
    return {split: split for split in splits_of(paths)}


def _report(source: PreferenceSource, split: str, findings: Findings, max_bad_fraction: float) -> None:
    """Warn of a source's rows that are left out or were changed, and refuse it if they are too many."""
    name = f"{source.dataset} (split {split})"
    for note, count in findings.notes.most_common():
        logger.warning("%d rows of %s: %s", count, name, note)
    num_bad = findings.bad.total()
    reasons = ", ".join(f"{count} with {reason}" for reason, count in findings.bad.most_common())
    if num_bad > max_bad_fraction * findings.num_rows:
        raise UserError(
            f"{num_bad} of {findings.num_rows} preference rows cannot be used in {name} ({reasons}), "
            f"the first at {findings.first_bad}",
            "fix the data, or raise kto.max_bad_fraction",
        )
    if num_bad:
        logger.warning("%d rows of %s left out: %s; the first at %s", num_bad, name, reasons, findings.first_bad)


def _dataset(rows: list[Row]) -> Any:
    """Return rows as a dataset; turns that differ in their keys, or hold more than text, are columns of JSON."""
    from datasets import Dataset, Features, Json, List, Value

    text, ids = Value("string"), List(Value("int32"))
    turns = [turn for row in rows if isinstance(row["prompt"], list) for turn in row["prompt"] + row["completion"]]
    is_plain = all([*turn] == [*turns[0]] and all(isinstance(value, str) for value in turn.values()) for turn in turns)
    conversation = text if not turns else List(dict.fromkeys(turns[0], text) if is_plain else Json())
    features = {"prompt": conversation, "completion": conversation, "label": Value("bool")} | {
        "tools": List(Json()), "chat_template_kwargs": Json(), "prompt_ids": ids, "completion_ids": ids,
        "finish_reason": text,
    }  # fmt: skip
    columns = [*COLUMNS, *(name for name in EXTRA_COLUMNS if any(name in row for row in rows))]
    as_json = [{name: _in_json(row.get(name), features[name]) for name in columns} for row in rows]
    is_inferred = is_plain and len(columns) == len(COLUMNS)
    return Dataset.from_list(as_json, None if is_inferred else Features({name: features[name] for name in columns}))


def _in_json(value: Any, feature: Any) -> Any:
    """Return a value with its parts of JSON written out: `datasets` would write them with ten digits of a number."""
    from datasets import Json, List

    if value is None:
        return None
    if isinstance(feature, Json):
        return json.dumps(value, ensure_ascii=False)
    return [_in_json(item, feature.feature) for item in value] if isinstance(feature, List) else value


def read_examples(dataset: Any) -> Iterator[Row]:
    """Yield the rows of a joined split as they were before they were written, absent columns left out."""
    from datasets import Json, List

    is_json = {
        name: isinstance(feature, Json) or (isinstance(feature, List) and isinstance(feature.feature, Json))
        for name, feature in dataset.features.items()
    }
    for batch in dataset.with_format("arrow").iter(1_000):
        for row in batch.to_pylist():
            yield {
                name: _out_of_json(value) if is_json[name] else value
                for name, value in row.items()
                if value is not None
            }


def _out_of_json(value: Any) -> Any:
    return [json.loads(item) for item in value] if isinstance(value, list) else json.loads(value)


# All sources together.


def join_rows(rows: list[Row], bad: Counter[str], config: PreferConfig) -> tuple[list[Row], dict[str, int]]:
    """De-duplicate, balance and check the rows of all sources together.

    Returns:
        The rows, and the counters: rows in = rows out + every other count.

    Raises:
        UserError: none are left.
    """
    whole = [row for row in rows if row.get("finish_reason") != CUT] if config.cut_completions == "drop" else rows
    num_in, num_cut = len(rows) + bad.total(), len(rows) - len(whole)
    if not whole:
        seen = f" ({num_cut} completions were cut: see kto.cut_completions)" if num_cut else ""
        raise UserError(f"the preference data has no rows{seen}", "add some to kto.data's sources")
    kept = list({canonical_json(row): row for row in whole}.values()) if config.deduplicate else whole
    balanced = _balance(kept, config.seed, config.balance == "per_prompt") if config.balance else kept
    if not balanced:
        raise UserError("no preference rows are left", "add data whose labels differ, or set kto.balance=false")
    counters = {
        "rows_in": num_in,
        "rows_out": len(balanced),
        "duplicates": len(whole) - len(kept),
        "left_out_to_balance": len(kept) - len(balanced),
        **({"cut_completions": num_cut} if num_cut else {}),
        **{f"bad: {reason}": count for reason, count in sorted(bad.items())},
    }
    return balanced, counters


def count_labelled_both_ways(rows: list[Row]) -> int:
    """Return how many completions of a prompt are labelled True in one row and False in another."""
    labels: dict[str, set[bool]] = defaultdict(set)
    for row in rows:
        labels[canonical_json([row["prompt"], row["completion"]])].add(row["label"])
    return sum(len(seen) > 1 for seen in labels.values())


def _balance(rows: list[Row], seed: int, per_prompt: bool) -> list[Row]:
    """Keep equally many of both labels, over all rows or within each prompt, in their old order; of the larger side,
    those that a keyed hash puts first."""
    groups: dict[str, dict[bool, list[int]]] = defaultdict(lambda: {True: [], False: []})
    for index, row in enumerate(rows):
        groups[canonical_json(row["prompt"]) if per_prompt else ""][row["label"]].append(index)
    kept: set[int] = set()
    for sides in groups.values():
        size = min(map(len, sides.values()))
        for side in sides.values():
            kept.update(sorted(side, key=lambda index: blake3(f"{seed} {index}".encode()).digest())[:size])
    return [row for index, row in enumerate(rows) if index in kept]
