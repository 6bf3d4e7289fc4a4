"""Preference data in TRL's unpaired form: `prompt`, `completion` (text, or role/content messages) and `label`.

Rows come unpaired (one completion, or several alternatives), paired (chosen and rejected: one row each), as `messages`
(first turn the prompt, second the completion, one label for all), as columns of a template, or with people's ratings.
A row that cannot be used is counted by reason and, past a cap, refused; it is never repaired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from blake3 import blake3

from ladle.artifacts.files import canonical_json
from ladle.data.preference.config import PreferConfig, PreferenceSource
from ladle.data.sources.templates import columns_of, fill
from ladle.errors import UserError

Row = dict[str, Any]
COLUMNS = ("prompt", "completion", "label")
_NEEDED = {"unpaired": COLUMNS, "paired": ("chosen", "rejected"), "messages": ("messages",)}
"""Columns that a format needs; those made of templates name their own."""


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
            yield from _kept(_examples_of(row, source), source)
        except BadRow as reason:
            bad[str(reason)] += 1


def _kept(examples: Iterator[Row], source: PreferenceSource) -> list[Row]:
    found = list(examples)
    return [row for row in found if source.keep_label in (None, row["label"])]


def _require_columns(row: Row, source: PreferenceSource) -> None:
    needed = _columns_of(source) - ({"label"} if source.label is not None else set())
    if missing := sorted(needed - row.keys()):
        raise UserError(
            f"{source.dataset} has no column {missing[0]!r} (it has {', '.join(row)})",
            f"set `format:` of this source to one of {', '.join(_NEEDED)}, whichever fits the columns",
        )


def _columns_of(source: PreferenceSource) -> set[str]:
    if source.format in _NEEDED:
        return set(_NEEDED[source.format])
    prompt, completion = source.templates
    columns = {*columns_of(prompt, "kto.data.prompt"), *columns_of(completion, "kto.data.completion")}
    return columns | ({source.rating} if source.format == "thumbs" else set())


def _examples_of(row: Row, source: PreferenceSource) -> Iterator[Row]:
    match source.format:
        case "paired":
            yield from _from_pair(row)
        case "messages":
            yield from _from_messages(row["messages"], source.label)
        case "template":
            yield _from_template(row, source, source.label)
        case "thumbs":
            yield _from_template(row, source, _label_of_rating(row[source.rating], source))
        case _:
            yield from _from_unpaired(row, row.get("label", source.label))


def _from_unpaired(row: Row, label: Any) -> Iterator[Row]:
    """Yield a row for each alternative; one label is all alternatives', a list holds one for each."""
    alternatives = _alternatives(row["completion"])
    labels = label if isinstance(label, list) else [label] * len(alternatives)
    if len(labels) != len(alternatives):
        raise BadRow("not as many labels as completions")
    # all or none, so that rows in = rows out + counts
    yield from [_example(row["prompt"], one, its) for one, its in zip(alternatives, labels, strict=True)]


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
        shared = _shared_length(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if chosen == rejected:
        raise BadRow("chosen and rejected alike")
    return [_example(prompt, chosen, True), _example(prompt, rejected, False)]


def _shared_length(first: list[Any], second: list[Any]) -> int:
    """Return how many turns two conversations open with alike."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _label_of_rating(rating: Any, source: PreferenceSource) -> bool:
    value = str(rating).strip().lower()
    if value in {word.lower() for word in source.up}:
        return True
    if value in {word.lower() for word in source.down}:
        return False
    raise BadRow("rating that is neither up nor down")


def _from_template(row: Row, source: PreferenceSource, label: bool | None) -> Row:
    prompt, completion = source.templates
    prompt = fill(prompt, row, "kto.data.prompt")
    completion = fill(completion, row, "kto.data.completion")
    if not source.conversational:
        return _example(prompt, completion, label)
    return _example([{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}], label)


def _from_messages(messages: Any, label: bool | None) -> Iterator[Row]:
    """Yield the first exchange; an opening system turn belongs to the prompt."""
    if not _are_turns(messages):
        raise BadRow("messages without role and content")
    turns = messages
    split = 2 if turns and turns[0]["role"] == "system" else 1
    if [turn["role"] for turn in turns[split - 1 : split + 1]] != ["user", "assistant"]:
        raise BadRow("messages that do not open with a user and an assistant turn")
    yield _example(turns[:split], turns[split : split + 1], label)


def _example(prompt: Any, completion: Any, label: Any) -> Row:
    if not isinstance(label, bool):
        raise BadRow("label that is not a boolean")
    if type(prompt) is not type(completion) or not isinstance(prompt, (str, list)):
        raise BadRow("prompt and completion that are not both text or both messages")
    if isinstance(prompt, list) and not (_are_turns(prompt) and _are_turns(completion)):
        raise BadRow("messages without role and content")
    if not prompt or not completion or not _text_of(completion).strip():
        raise BadRow("empty prompt or completion")
    return {"prompt": _bare(prompt), "completion": _bare(completion), "label": label}


def _are_turns(messages: Any) -> bool:
    return isinstance(messages, list) and all(
        isinstance(turn, dict) and turn.get("role") and isinstance(turn.get("content"), str) for turn in messages
    )


def _bare(value: Any) -> Any:
    """Return text as it is, and turns with their role and content alone."""
    return value if isinstance(value, str) else [{"role": turn["role"], "content": turn["content"]} for turn in value]


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
    if not rows:
        raise UserError("the preference data has no rows", "add some to kto.data's sources")
    kept = _deduplicate(rows) if config.deduplicate else rows
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


def _deduplicate(rows: list[Row]) -> list[Row]:
    return list({canonical_json(row): row for row in rows}.values())


def count_labelled_both_ways(rows: list[Row]) -> int:
    """Return how many completions of a prompt are labelled True in one row and False in another."""
    labels: dict[str, set[bool]] = {}
    for row in rows:
        labels.setdefault(canonical_json([row["prompt"], row["completion"]]), set()).add(row["label"])
    return sum(len(seen) > 1 for seen in labels.values())


def _balance(rows: list[Row], seed: int, per_prompt: bool) -> list[Row]:
    """Keep equally many of both labels, over all rows or within each prompt, in their old order."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(canonical_json(row["prompt"]) if per_prompt else "", []).append(index)
    kept = {index for indices in groups.values() for index in _balanced(rows, indices, seed)}
    return [row for index, row in enumerate(rows) if index in kept]


def _balanced(rows: list[Row], indices: list[int], seed: int) -> list[int]:
    """Return the smaller side's indices, and of the larger side as many, those that a keyed hash puts first."""
    sides = [[index for index in indices if rows[index]["label"] is label] for label in (True, False)]
    size = min(map(len, sides))
    return [
        index
        for side in sides
        for index in sorted(side, key=lambda index: blake3(f"{seed} {index}".encode()).digest())[:size]
    ]
