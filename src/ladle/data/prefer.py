"""Joins preference data into one dataset in TRL's unpaired form, which `datasets.load_from_disk` opens: `prompt`,
`completion` (text, or role/content messages) and `label`.

Rows come unpaired (one completion, or several alternatives), paired (chosen and rejected: one row each), as `messages`
(first turn the prompt, second the completion, one label for all), as columns of a template, or with people's ratings.
A row that cannot be used is counted by reason and, past a cap, refused; it is never repaired.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from blake3 import blake3

from ladle.artifacts.files import canonical_json
from ladle.data.config import EVERY_SPLIT, ROLLOUTS, TRAIN, PreferConfig, PreferenceSource
from ladle.data.files import splits_of
from ladle.data.formats import columns_of_template, fill
from ladle.data.rows import read_rows
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)

DATASET = "preference"
Row = dict[str, Any]
_COLUMNS = ("prompt", "completion", "label")
_NEEDED = {"unpaired": _COLUMNS, "paired": ("chosen", "rejected"), "messages": ("messages",)}
"""Columns that a format needs; those made of templates name their own."""


class BadRow(ValueError):
    """A row that cannot become an example; the message is the reason it is counted under."""


def run(config: PreferConfig, inputs: Inputs, out: Path) -> StageResult:
    """Read the sources in order (inputs `source:0`, `source:1`, …) and write every split of `preference/`."""
    from datasets import Dataset, DatasetDict, disable_progress_bars

    rows: dict[str, list[Row]] = defaultdict(list)
    bad: dict[str, Counter[str]] = defaultdict(Counter)
    for index, source in enumerate(config.data):
        paths = inputs[f"source:{index}"]
        if source.dataset == ROLLOUTS:
            splits = {TRAIN: source.into}
        elif source.split == EVERY_SPLIT:
            splits = {split: split for split in splits_of(paths)}
        else:
            splits = {source.split: source.into}
        for split, into in splits.items():
            rows[into] += unpaired_rows(islice(read_rows(paths, split), source.limit), source, bad[into])
    counters: dict[str, int] = {}
    datasets = DatasetDict()
    forms = set()
    as_they_are = config.model_copy(update={"balance": False})  # what is evaluated on is not picked over
    disable_progress_bars()
    for split in sorted(rows, key=lambda name: (name != TRAIN, name)):
        for reason, count in bad[split].most_common():
            logger.warning("%d rows of %s left out: %s", count, split, reason)
        kept, counts = join_rows(rows[split], bad[split], config if split == TRAIN else as_they_are)
        num_desirable = sum(row["label"] for row in kept)
        counts |= {"desirable": num_desirable, "undesirable": len(kept) - num_desirable}
        if count := count_labelled_both_ways(kept):
            logger.warning(
                "%d completions of %s are labelled True in one row and False in another; both stay", count, split
            )
        counters |= counts if split == TRAIN else {f"{split}: {name}": count for name, count in counts.items()}
        forms |= {type(row["prompt"]) for row in kept}
        datasets[split] = Dataset.from_list([{name: row[name] for name in _COLUMNS} for row in kept])
    if len(forms) > 1:
        raise UserError("some preference sources hold text and others messages", "bring them to one form")
    shutil.rmtree(out / DATASET, ignore_errors=True)
    datasets.save_to_disk(out / DATASET)
    return StageResult(counters)


# From rows to examples.


def unpaired_rows(rows: Iterable[Row], source: PreferenceSource, bad: Counter[str]) -> Iterator[Row]:
    """Yield the examples of one source's rows, counting into `bad` those that cannot be used.

    Raises:
        UserError: the rows lack a column that the format needs.
    """
    if source.format in _NEEDED:
        needed = set(_NEEDED[source.format])
    else:
        prompt, completion = source.templates
        needed = {*columns_of_template(prompt, "kto.data.prompt")}
        needed |= {*columns_of_template(completion, "kto.data.completion")}
        needed |= {source.rating} if source.format == "thumbs" else set()
    if source.label is not None:
        needed -= {"label"}
    for row in rows:
        if missing := sorted(needed - row.keys()):
            raise UserError(
                f"{source.dataset} has no column {missing[0]!r} (it has {', '.join(row)})",
                f"set `format:` of this source to one of {', '.join(_NEEDED)}, whichever fits the columns",
            )
        try:  # all or none of a row, so that rows in = rows out + counts
            examples = list(_examples_of(row, source))
        except BadRow as reason:
            bad[str(reason)] += 1
            continue
        yield from (example for example in examples if source.keep_label in (None, example["label"]))


def _examples_of(row: Row, source: PreferenceSource) -> Iterator[Row]:
    match source.format:
        case "paired":
            yield from _from_pair(row)
        case "messages":
            yield _from_messages(row["messages"], source.label)
        case "template" | "thumbs":
            label = source.label if source.format == "template" else _label_of_rating(row[source.rating], source)
            keys = ("kto.data.prompt", "kto.data.completion")
            prompt, completion = (fill(text, row, key) for text, key in zip(source.templates, keys, strict=True))
            if source.conversational:
                prompt = [{"role": "user", "content": prompt}]
                completion = [{"role": "assistant", "content": completion}]
            yield _example(prompt, completion, label)
        case _:  # one label is all alternatives', a list holds one for each
            alternatives, label = _alternatives(row["completion"]), row.get("label", source.label)
            labels = label if isinstance(label, list) else [label] * len(alternatives)
            if len(labels) != len(alternatives):
                raise BadRow("not as many labels as completions")
            yield from (_example(row["prompt"], one, its) for one, its in zip(alternatives, labels, strict=True))


def _alternatives(completion: Any) -> list[Any]:
    """Return the completions that a column holds: texts, conversations, or several assistant turns on end."""
    if not isinstance(completion, list) or not completion:
        return [completion]
    if all(isinstance(one, (str, list)) for one in completion):
        return completion
    if len(completion) > 1 and all(isinstance(turn, dict) and turn.get("role") == "assistant" for turn in completion):
        return [[turn] for turn in completion]
    return [completion]


def _from_pair(row: Row) -> list[Row]:
    """Return a row of each label; conversations that hold their prompt are split where they part."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list) and not isinstance(prompt, list):
        pairs = enumerate(zip(chosen, rejected, strict=False))
        shared = next((place for place, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same")
    return [_example(prompt, chosen, True), _example(prompt, rejected, False)]


def _label_of_rating(rating: Any, source: PreferenceSource) -> bool:
    value = str(rating).strip().lower()
    if value in map(str.lower, source.up):
        return True
    if value in map(str.lower, source.down):
        return False
    raise BadRow("rating that is neither up nor down")


def _from_messages(messages: Any, label: bool | None) -> Row:
    """Return the first exchange; an opening system turn belongs to the prompt."""
    if not _are_turns(messages):
        raise BadRow("messages without role and content")
    split = 2 if messages and messages[0]["role"] == "system" else 1
    if [turn["role"] for turn in messages[split - 1 : split + 1]] != ["user", "assistant"]:
        raise BadRow("messages that do not open with a user and an assistant turn")
    return _example(messages[:split], messages[split : split + 1], label)


def _example(prompt: Any, completion: Any, label: Any) -> Row:
    if not isinstance(label, bool):
        raise BadRow("label that is not a boolean")
    if type(prompt) is not type(completion) or not isinstance(prompt, (str, list)):
        raise BadRow("prompt and completion that are not both text or both messages")
    if isinstance(prompt, list) and not (_are_turns(prompt) and _are_turns(completion)):
        raise BadRow("messages without role and content")
    text = completion if isinstance(completion, str) else "".join(turn["content"] for turn in completion)
    if not prompt or not text.strip():
        raise BadRow("empty prompt or completion")
    return {"prompt": _bare(prompt), "completion": _bare(completion), "label": label}


def _are_turns(messages: Any) -> bool:
    return isinstance(messages, list) and all(
        isinstance(turn, dict) and turn.get("role") and isinstance(turn.get("content"), str) for turn in messages
    )


def _bare(value: Any) -> Any:
    """Return text as it is, and turns with their role and content alone."""
    return value if isinstance(value, str) else [{"role": turn["role"], "content": turn["content"]} for turn in value]


# All sources together.


def join_rows(rows: list[Row], bad: Counter[str], config: PreferConfig) -> tuple[list[Row], dict[str, int]]:
    """De-duplicate, balance and check the rows of all sources together.

    Returns:
        The rows, and the counters: rows in = rows out + every other count.

    Raises:
        UserError: too many unusable rows, or none left.
    """
    num_bad, num_in = sum(bad.values()), len(rows) + sum(bad.values())
    if num_bad > config.max_bad_fraction * num_in:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in bad.most_common())
        raise UserError(
            f"{num_bad} of {num_in} preference rows cannot be used ({reasons})",
            "fix the data, or raise kto.max_bad_fraction",
        )
    if not rows:
        raise UserError("the preference data has no rows", "add some to kto.data's sources")
    kept = list({canonical_json(row): row for row in rows}.values()) if config.deduplicate else rows
    balanced = _balance(kept, config.seed, config.balance == "per_prompt") if config.balance else kept
    if not balanced:
        raise UserError("no preference rows are left", "add data whose labels differ, or set kto.balance=false")
    counters = {
        "rows_in": num_in,
        "rows_out": len(balanced),
        "duplicates": len(rows) - len(kept),
        "left_out_to_balance": len(kept) - len(balanced),
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
