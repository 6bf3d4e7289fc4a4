"""Turns a row of preference data of any form into examples: prompt, completion and label, in TRL's unpaired form.

Rows come unpaired (one completion, or a list of alternatives), paired (chosen and rejected: one example each), as
`messages` (the last answer, with all before it as prompt), as columns of a template, or with people's ratings.
Conversations stay whole: turns keep all their keys, and a row its `tools` and `chat_template_kwargs`. Token ids
(`prompt_ids`, `completion_ids`), as rollouts leave them, are kept too. A row that cannot be used raises `BadRow`, whose
problem is the reason it is counted under; it is never repaired in silence.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ladle.data.config import ROLLOUTS, PreferenceSource
from ladle.data.formats import fill, kind_of
from ladle.data.rows import Unreadable
from ladle.errors import BadRow, UserError

Row = dict[str, Any]
COLUMNS = ("prompt", "completion", "label")
EXTRA_COLUMNS = ("tools", "chat_template_kwargs", "prompt_ids", "completion_ids", "finish_reason")
"""Columns of the joined data where some example has them; the first two by TRL's names."""
CUT, STOPPED = "length", "stop"
"""`finish_reason` of a completion that was cut before its end, and of one that ended by a stop text: neither is
followed by an end token."""
_CONVERSATIONS = ("unpaired", "paired", "messages")
_ROLES = {"human": "user", "gpt": "assistant"}
_SET_BY_LADLE = {"conversation", "tools", "tokenize", "add_generation_prompt", "continue_final_message"}
_LARGEST = 2**63 - 1


@dataclass
class Findings:
    """What became of a source's rows."""

    num_rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be used, by reason."""
    first_bad: str = ""
    """Where the first of them is."""
    notes: Counter[str] = field(default_factory=Counter)
    """Examples that were not taken as they stand in the file, by what was done."""


def unpaired_rows(
    rows: Iterable[tuple[str, Row | Unreadable]], source: PreferenceSource, findings: Findings
) -> Iterator[Row]:
    """Yield the examples of one source's rows, counting in `findings` those that cannot be used.

    Args:
        rows: each with its place in a file.
        source: what the rows are.
        findings: filled on the way.

    Raises:
        UserError: no row has the columns that the format needs, or ratings of another scale than the lists.
    """
    form: type | None = None
    needed, columns, lacking = source.columns, dict[str, None](), Counter[str]()
    for place, row in rows:
        findings.num_rows += 1
        try:  # all or none of a row, so that rows in = rows out + counts
            if isinstance(row, Unreadable):
                raise BadRow(row.reason)
            columns |= dict.fromkeys(row)
            if missing := sorted(needed - row.keys()):
                lacking[missing[0]] += 1
                raise BadRow(f"no column {missing[0]!r}")
            examples, notes = examples_of(row, source)
            forms = {form or type(examples[0]["prompt"]), *(type(example["prompt"]) for example in examples)}
            if len(forms) > 1:
                raise BadRow("text among messages, or messages among text")
        except BadRow as reason:
            findings.bad[reason.problem] += 1
            findings.first_bad = findings.first_bad or place
            continue
        form = forms.pop()
        findings.notes.update(notes)
        yield from (example for example in examples if source.keep_label in (None, example["label"]))
    if findings.num_rows and lacking.total() == findings.num_rows:
        raise UserError(
            f"{source.dataset} has no column {min(lacking)!r} (it has {', '.join(columns)})",
            f"set `format:` of this source to one of {', '.join(_CONVERSATIONS)}, whichever fits the columns",
        )


def examples_of(row: Row, source: PreferenceSource) -> tuple[list[Row], Counter[str]]:
    """Return the examples of a row, at least one, and what was done to some of them.

    Raises:
        BadRow: it cannot become one.
    """
    notes = Counter[str]()
    found = list(_parts(row, source, notes))
    extras = _extras(row, source, isinstance(found[0][0], list))
    examples = [_example(prompt, completion, label, notes) | extras for prompt, completion, label in found]
    _require_json(examples)
    return examples, notes


def _parts(row: Row, source: PreferenceSource, notes: Counter[str]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield prompt, completion and label of each example, with turns as `_turns` leaves them."""
    match source.format:
        case "paired":
            prompt, chosen, rejected = _split_pair(
                *(_turns(row.get(name)) for name in ("prompt", "chosen", "rejected"))
            )
            yield from ((prompt, chosen, True), (prompt, rejected, False))
        case "messages":
            yield *_last_answer(_turns(row["messages"]), notes), _own_label(row, source)
        case "template" | "thumbs":
            keys = ("kto.data.prompt", "kto.data.completion")
            prompt, completion = (fill(text, row, key) for text, key in zip(source.templates, keys, strict=True))
            if source.conversational:
                prompt = [{"role": "user", "content": prompt}]
                completion = [{"role": "assistant", "content": completion}]
            if source.format == "thumbs":
                yield prompt, completion, _label_of_rating(row[source.rating], source)
            else:  # a column that the text is made of is not its label
                yield prompt, completion, source.label if "label" in source.columns else _own_label(row, source)
        case _:  # one label is all alternatives', a list holds one for each
            completion, label = row["completion"], _own_label(row, source)
            holds_several = isinstance(completion, list) and completion and not isinstance(completion[0], dict)
            alternatives = completion if holds_several or isinstance(label, list) else [completion]
            labels = label if isinstance(label, list) else [label] * len(alternatives)
            if not isinstance(alternatives, list) or not labels or len(labels) != len(alternatives):
                raise BadRow("not as many labels as completions")
            prompt = _turns(row["prompt"])
            for one, its_label in zip(alternatives, labels, strict=True):
                yield prompt, _turns([one] if isinstance(one, dict) else one), its_label


def _own_label(row: Row, source: PreferenceSource) -> Any:
    own = row.get("label")
    return source.label if own is None else own


def _label_of_rating(rating: Any, source: PreferenceSource) -> bool:
    word = str(int(rating) if isinstance(rating, float) and rating.is_integer() else rating).strip().lower()
    for label, words in ((True, source.up), (False, source.down)):
        if word in (one.strip().lower() for one in words):
            return label
    has_default = any(getattr(source, name) == type(source).model_fields[name].default for name in ("up", "down"))
    if has_default and word.lstrip("+-").replace(".", "", 1).isdigit():
        problem = f"{source.dataset} holds the rating {word}, and `up` or `down` is left out, which is made for 1 and 0"
        raise UserError(problem, "set both lists to this scale's ratings")
    raise BadRow("rating that is neither up nor down")


def _split_pair(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Split completions that open with their prompt where they part, as TRL's `extract_prompt` does."""
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same")
    both_turns = isinstance(chosen, list) and isinstance(rejected, list)
    both_text = isinstance(chosen, str) and isinstance(rejected, str)
    if (both_turns and not isinstance(prompt, list)) or (both_text and prompt is None):
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
        if both_text and chosen[shared - 1 : shared] == " ":  # the blank goes with the word after it
            shared -= 1
        return chosen[:shared], chosen[shared:], rejected[shared:]
    return prompt, chosen, rejected


def _last_answer(turns: Any, notes: Counter[str]) -> tuple[Any, Any]:
    """Return the turns before the last answer, and the answer: the last assistant turns on end."""
    if not isinstance(turns, list):
        raise BadRow(f"messages that are {kind_of(turns)}")
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise BadRow("messages without an assistant turn")
    first = stop = answers[-1] + 1
    while first and turns[first - 1]["role"] == "assistant":
        first -= 1
    if stop < len(turns):
        notes["conversations go on after their last answer, in turns that are not used"] += 1
    return turns[:first], turns[first:stop]


def _turns(value: Any) -> Any:
    """Return turns as chat templates take them, and anything else as it is.

    Keys that are null are left out, as transformers does; parts of text are joined; ShareGPT's `from`, `value`, human
    and gpt become role, content, user and assistant.
    """
    return [read_turn(one) for one in value] if isinstance(value, list) else value


def read_turn(value: Any) -> Row:
    """Return one turn as chat templates take it, with all its keys but those that are null."""
    if not isinstance(value, dict):
        raise BadRow(f"messages with {kind_of(value)} in place of a turn")
    turn = {key: item for key, item in value.items() if item is not None}
    if "role" not in turn and "from" in turn:
        turn = {"role": turn.pop("from"), "content": turn.pop("value", None), **turn}
    role, content = turn.pop("role", None), turn.pop("content", None)
    if not isinstance(role, str) or not role or (content is None and not turn):
        raise BadRow("messages without role and content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text")) for part in content)
    if not isinstance(content, str) and content is not None and role != "tool":
        raise BadRow("messages whose content is not text")
    return {"role": _ROLES.get(role, role), **({} if content is None else {"content": content}), **turn}


def _example(prompt: Any, completion: Any, label: Any, notes: Counter[str]) -> Row:
    if isinstance(label, str) and label.strip().lower() in ("true", "false"):  # CSV holds nothing but text
        label = label.strip().lower() == "true"
    if not isinstance(label, bool):
        raise BadRow("no label" if label is None else "label that is not a boolean")
    if type(prompt) is not type(completion) or not isinstance(prompt, (str, list)):
        kinds = f"{kind_of(prompt)} and {kind_of(completion)}"
        raise BadRow(f"prompt and completion that are not both text or both messages ({kinds})")
    if repeated := _length_of_repeated(prompt, completion):
        completion = completion[repeated:]
        notes["completions repeat their prompt, which was cut off"] += 1
    if not prompt or not _holds_something(completion):
        raise BadRow("empty prompt or completion")
    if isinstance(completion, list):
        roles = [turn["role"] for turn in completion]
        if not roles[0] == roles[-1] == "assistant":
            raise BadRow("completion that does not begin and end with an assistant turn")
        seam: list[Any] = [prompt[-1], completion[0]]
        if seam[0]["role"] == "assistant" and not all("content" in turn for turn in seam):
            raise BadRow("prompt that ends in an assistant turn which the completion cannot continue")
        if set(roles) != {"assistant"}:
            notes["completions hold turns of others, which are trained on too"] += 1
    return {"prompt": prompt, "completion": completion, "label": label}


def _length_of_repeated(prompt: Any, completion: Any) -> int:
    """Return how much of a completion repeats its prompt: all of a text, or its last turns."""
    if isinstance(prompt, str):
        return len(prompt) if completion.startswith(prompt) else 0
    lengths = range(min(len(prompt), len(completion)), 0, -1)
    return next((length for length in lengths if prompt[-length:] == completion[:length]), 0)


def _holds_something(completion: Any) -> bool:
    if isinstance(completion, str):
        return bool(completion.strip())
    values = [value for turn in completion for key, value in turn.items() if key != "role"]
    return any(value.strip() if isinstance(value, str) else value for value in values)


def _extras(row: Row, source: PreferenceSource, is_conversation: bool) -> Row:
    """Return what the row says beside prompt, completion and label, of `EXTRA_COLUMNS`."""
    extras: Row = {}
    if source.format in _CONVERSATIONS and any(row.get(name) for name in ("image", "images")):
        raise BadRow("images, which are not trained on")
    if source.format in _CONVERSATIONS and is_conversation:
        extras = template_arguments(row)
    if source.format != "unpaired":
        return extras
    ids = {name: row[name] for name in ("prompt_ids", "completion_ids") if row.get(name) is not None}
    if ids and (len(ids) < 2 or not all(map(_are_ids, ids.values()))):
        raise BadRow("prompt_ids and completion_ids that are not both lists of token ids")
    reason = row.get("finish_reason")
    # elsewhere than in rollouts, `stop` may mean an end token; ids say it themselves
    is_open = reason == CUT or (reason == STOPPED and source.dataset == ROLLOUTS and not ids)
    return extras | ids | ({"finish_reason": reason} if is_open else {})


def template_arguments(row: Row) -> Row:
    """Return a conversation's `tools` and `chat_template_kwargs`, where it has any."""
    tools, arguments = (_parsed(row.get(name)) for name in EXTRA_COLUMNS[:2])
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow("tools that are not a list of objects")
    if arguments and (not isinstance(arguments, dict) or arguments.keys() & _SET_BY_LADLE):
        raise BadRow(f"chat_template_kwargs that are not an object, or set one of {', '.join(sorted(_SET_BY_LADLE))}")
    return {name: value for name, value in zip(EXTRA_COLUMNS, (tools, arguments), strict=False) if value}


def _parsed(value: Any) -> Any:
    """Return what a column holds that may be written as JSON, as TRL's `tools`."""
    try:
        return json.loads(value) if isinstance(value, str) and value else value
    except ValueError:
        return value


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 2**31 for one in value)


def _require_json(value: Any) -> None:
    """Refuse what JSON does not hold and tables do (dates, bytes, numbers past 64 bits)."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _require_json(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRow("a number that is not finite")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise BadRow("a number past 64 bits")
    elif not (value is None or isinstance(value, (str, int, float))):
        raise BadRow(f"messages with {kind_of(value)} in them")
