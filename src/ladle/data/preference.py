"""Preference data in TRL's unpaired form: `prompt`, `completion` (text, or role/content messages) and `label`.

Rows come unpaired, paired (prompt, chosen, rejected: one row each), or as `messages` (first turn the prompt, second
the completion, one label for all), or as columns of a template. A row that cannot be used is counted by reason and,
past a cap, refused; it is never repaired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from blake3 import blake3

from ladle.artifacts.files import canonical_json
from ladle.data.preference_config import PreferConfig, PreferenceSource
from ladle.data.templates import columns_of, fill
from ladle.errors import UserError

Row = dict[str, Any]
COLUMNS = ("prompt", "completion", "label")
_NEEDED = {"unpaired": COLUMNS, "paired": ("prompt", "chosen", "rejected"), "messages": ("messages",)}
"""Columns that a format needs; a template names its own."""


class BadRow(ValueError):
    """A row that cannot become an example; the message is the reason it is counted under."""


def unpaired_rows(rows: Iterable[Row], source: PreferenceSource, bad: Counter[str]) -> Iterator[Row]:
    """Yield the examples of one source's rows, counting into `bad` those that cannot be used.

    Raises:
        UserError: the rows lack a column that the format needs.
    """
    for row in rows:
        _require_columns(row, source)
        try:
            yield from _examples_of(row, source)
        except BadRow as reason:
            bad[str(reason)] += 1


def _require_columns(row: Row, source: PreferenceSource) -> None:
    needed = _columns_of(source) - ({"label"} if source.label is not None else set())
    if missing := sorted(needed - row.keys()):
        raise UserError(
            f"{source.dataset} has no column {missing[0]!r} (it has {', '.join(row)})",
            f"set `format:` of this source to one of {', '.join(_NEEDED)}, whichever fits the columns",
        )


def _columns_of(source: PreferenceSource) -> set[str]:
    if source.format != "template":
        return set(_NEEDED[source.format])
    return {*columns_of(source.prompt, "kto.data.prompt"), *columns_of(source.completion, "kto.data.completion")}


def _examples_of(row: Row, source: PreferenceSource) -> Iterator[Row]:
    if source.format == "paired":
        yield _example(row["prompt"], row["chosen"], True)
        yield _example(row["prompt"], row["rejected"], False)
    elif source.format == "messages":
        yield from _from_messages(row["messages"], source.label)
    elif source.format == "template":
        yield _from_template(row, source)
    else:
        yield _example(row["prompt"], row["completion"], row.get("label", source.label))


def _from_template(row: Row, source: PreferenceSource) -> Row:
    prompt = fill(source.prompt, row, "kto.data.prompt")
    completion = fill(source.completion, row, "kto.data.completion")
    if not source.conversational:
        return _example(prompt, completion, source.label)
    return _example([{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}], source.label)


def _from_messages(messages: Any, label: bool | None) -> Iterator[Row]:
    """Yield the first exchange; an opening system turn belongs to the prompt."""
    if not isinstance(messages, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in messages
    ):
        raise BadRow("messages without role and content")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    split = 2 if turns and turns[0]["role"] == "system" else 1
    if [turn["role"] for turn in turns[split - 1 : split + 1]] != ["user", "assistant"]:
        raise BadRow("messages that do not open with a user and an assistant turn")
    yield _example(turns[:split], turns[split : split + 1], label)


def _example(prompt: Any, completion: Any, label: Any) -> Row:
    if not isinstance(label, bool):
        raise BadRow("label that is not a boolean")
    if type(prompt) is not type(completion) or not isinstance(prompt, (str, list)):
        raise BadRow("prompt and completion that are not both text or both messages")
    if not prompt or not completion or not _text_of(completion).strip():
        raise BadRow("empty prompt or completion")
    return {"prompt": prompt, "completion": completion, "label": label}


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "".join(str(turn.get("content") or "") for turn in value)


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
            "mend the data, or raise kto.max_bad_fraction",
        )
    kept = _deduplicate(rows) if config.deduplicate else rows
    balanced = _balance(kept, config.seed) if config.balance else kept
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


def _deduplicate(rows: list[Row]) -> list[Row]:
    return list({canonical_json(row): row for row in rows}.values())


def _balance(rows: list[Row], seed: int) -> list[Row]:
    """Keep equally many of both labels: of the larger side those that a keyed hash puts first, in their old order."""
    size = min(sum(row["label"] for row in rows), sum(not row["label"] for row in rows))
    kept: set[int] = set()
    for label in (True, False):
        indices = [index for index, row in enumerate(rows) if row["label"] is label]
        kept.update(sorted(indices, key=lambda index: blake3(f"{seed} {index}".encode()).digest())[:size])
    return [row for index, row in enumerate(rows) if index in kept]
