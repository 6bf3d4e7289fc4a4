"""Joins preference data of any form into one dataset in TRL's unpaired form, which `datasets.load_from_disk` opens:
`prompt`, `completion` (text, or messages with all their keys) and `label`, and `EXTRA_COLUMNS` where some row has them.

Rows come unpaired (one completion, or a list of alternatives), paired (chosen and rejected: one example each), as
`messages` (the last answer, with all before it as prompt), as columns of a template, or with people's ratings.
Conversations stay whole: turns keep all their keys, and a row its `tools` and `chat_template_kwargs`. Token ids
(`prompt_ids`, `completion_ids`), as rollouts leave them, are kept too. A row that cannot be used is counted by reason
and, past a cap for each source, the source is refused; it is never repaired in silence.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from blake3 import blake3
from datasets import Dataset, DatasetDict, Features, Json, List, Value, disable_progress_bars

from ladle.artifacts.files import canonical_json
from ladle.data.config import EVERY_SPLIT, ROLLOUTS, TRAIN, PreferConfig, PreferenceSource, mixed_forms
from ladle.data.files import find_data_files, splits_of
from ladle.data.formats import fill, kind_of, read_turn, template_arguments
from ladle.data.rows import Unreadable, scan_rows
from ladle.errors import BadRow, UserError
from ladle.log import get_logger
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)

Row = dict[str, Any]
DATASET = "preference"
COLUMNS = ("prompt", "completion", "label")
# Columns of the joined data where some example has them; the first two by TRL's names.
EXTRA_COLUMNS = ("tools", "chat_template_kwargs", "prompt_ids", "completion_ids", "finish_reason")
# `finish_reason` of a completion that was cut before its end, and of one that ended by a stop text: neither is followed
# by an end token.
CUT, STOPPED = "length", "stop"
TEXT, IDS = Value("string"), List(Value("int32"))
_CONVERSATIONS = ("unpaired", "paired", "messages")
_LARGEST = 2**63 - 1


def run(config: PreferConfig, inputs: Inputs, out: Path) -> StageResult:
    """Read the sources in order (inputs `source:0`, `source:1`, …) and write every split of `preference/`."""
    rows: dict[str, list[Row]] = defaultdict(list)
    bad: dict[str, Counter[str]] = defaultdict(Counter)
    form_of: dict[type, PreferenceSource] = {}
    read: dict[str, set[Path]] = defaultdict(set)
    for role, source in ((f"source:{index}", source) for index, source in enumerate(config.data)):
        is_every = source.split == EVERY_SPLIT
        for split in splits_of(inputs[role]) if is_every else [source.split]:
            findings, into = Findings(), split if is_every else source.into
            files = [file.path for file in find_data_files(inputs[role], split)]
            read[role].update(files)
            for row in unpaired_rows(islice(scan_rows(files), source.limit), source, findings):
                form_of.setdefault(type(row["prompt"]), source)
                if len(form_of) > 1:
                    raise mixed_forms(form_of[str].dataset, form_of[list].dataset)
                rows[into].append(row)
            if not findings.num_rows and source.dataset != ROLLOUTS:
                raise UserError(f"{source.dataset} (split {split}) holds no rows", "check the source's `dataset`")
            _report(source, split, findings, config.max_bad_fraction)
            bad[into] += findings.bad
    counters: dict[str, int] = {}
    datasets = DatasetDict()
    as_they_are = config.model_copy(update={"balance": False})  # what is evaluated on is not picked over
    for split in sorted(rows.keys() | bad.keys(), key=lambda name: (name != TRAIN, name)):
        kept, counts = join_rows(rows[split], bad[split], config if split == TRAIN else as_they_are)
        num_desirable = sum(row["label"] for row in kept)
        counts |= {"desirable": num_desirable, "undesirable": len(kept) - num_desirable}
        if cut := counts.get("cut_completions"):
            logger.warning("%d cut completions of %s are left out (cut_completions: drop)", cut, split)
        if count := count_labelled_both_ways(kept):
            message = "%d completions of %s are labelled True in one row and False in another; both stay"
            logger.warning(message, count, split)
        counters |= counts if split == TRAIN else {f"{split}: {name}": count for name, count in counts.items()}
        datasets[split] = make_dataset(kept)
    shutil.rmtree(out / DATASET, ignore_errors=True)
    disable_progress_bars()
    datasets.save_to_disk(out / DATASET)
    return StageResult(counters, files_read=read)


def _report(source: PreferenceSource, split: str, findings: Findings, max_bad_fraction: float) -> None:
    """Warn of a source's rows that are left out or were changed, and refuse it if they are too many."""
    name, num_bad = f"{source.dataset} (split {split})", findings.bad.total()
    for note, count in findings.notes.most_common():
        logger.warning("%d rows of %s: %s", count, name, note)
    reasons = ", ".join(f"{count} with {reason}" for reason, count in findings.bad.most_common())
    if num_bad > max_bad_fraction * findings.num_rows:
        problem = f"{num_bad} of {findings.num_rows} preference rows cannot be used in {name} ({reasons})"
        fix = "fix the data, or raise max_bad_fraction"
        raise UserError(f"{problem}, the first at {findings.first_bad}", fix)
    if num_bad:
        logger.warning("%d rows of %s left out: %s; the first at %s", num_bad, name, reasons, findings.first_bad)


def make_dataset(rows: list[Row]) -> Dataset:
    """Return rows as a dataset; turns that differ in their keys, or hold more than text, are columns of JSON."""
    turns = [turn for row in rows if isinstance(row["prompt"], list) for turn in row["prompt"] + row["completion"]]
    is_plain = all([*turn] == [*turns[0]] and all(isinstance(value, str) for value in turn.values()) for turn in turns)
    conversation = TEXT if not turns else List(dict.fromkeys(turns[0], TEXT) if is_plain else Json())
    features = {"prompt": conversation, "completion": conversation, "label": Value("bool")} | {
        "tools": List(Json()), "chat_template_kwargs": Json(), "prompt_ids": IDS, "completion_ids": IDS,
        "finish_reason": TEXT,
    }  # fmt: skip
    columns = [*COLUMNS, *(name for name in EXTRA_COLUMNS if any(name in row for row in rows))]
    as_json = [{name: _in_json(row.get(name), features[name]) for name in columns} for row in rows]
    return Dataset.from_list(as_json, Features({name: features[name] for name in columns}))


def _in_json(value: Any, feature: Any) -> Any:
    """Return a value with its parts of JSON written out: `datasets` would write them with ten digits of a number."""
    if isinstance(feature, Json):
        return None if value is None else json.dumps(value, ensure_ascii=False)
    return [_in_json(item, feature.feature) for item in value] if isinstance(feature, List) and value else value


def read_examples(dataset: Any) -> Iterator[Row]:
    """Yield the rows of a joined split as they were before they were written, absent columns left out."""
    for batch in dataset.with_format("arrow").iter(1_000):
        for row in batch.to_pylist():
            yield {name: _out_of_json(row[name], dataset.features[name]) for name in row if row[name] is not None}


def _out_of_json(value: Any, feature: Any) -> Any:
    if isinstance(feature, Json):
        return json.loads(value)
    return [_out_of_json(item, feature.feature) for item in value] if isinstance(feature, List) else value


def join_rows(rows: list[Row], bad: Counter[str], config: PreferConfig) -> tuple[list[Row], dict[str, int]]:
    """De-duplicate, balance and check the rows of all sources together.

    Returns:
        The rows, and the counters: rows in = rows out + every other count.

    Raises:
        UserError: none are left.
    """
    whole = [row for row in rows if row.get("finish_reason") != CUT] if config.cut_completions == "drop" else rows
    num_cut = len(rows) - len(whole)
    if not whole:
        seen = f" ({num_cut} completions were cut: see cut_completions)" if num_cut else ""
        fix = "add some to `data`, or make more rollouts: none of them may have been right, or gradable"
        raise UserError(f"there are no rows to train on{seen}", fix)
    kept = list({canonical_json(row): row for row in whole}.values()) if config.deduplicate else whole
    balanced = _balance(kept, config.seed, config.balance == "per_prompt") if config.balance else kept
    if not balanced:
        raise UserError("no preference rows are left", "add data whose labels differ, or set kto.balance=false")
    counters = {
        "rows_in": len(rows) + bad.total(),
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


# From a row to examples.


@dataclass
class Findings:
    """What became of a source's rows.

    Attributes:
        num_rows: all that were read.
        bad: those that cannot be used, by reason.
        first_bad: where the first of them is.
        notes: examples that were not taken as they are in the file, by what was done.
    """

    num_rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""
    notes: Counter[str] = field(default_factory=Counter)


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
            notes = Counter[str]()
            found = list(_parts(row, source, notes))
            extras = _extras(row, source, isinstance(found[0][0], list))
            examples = [_example(*one, source, notes) | extras for one in found]
            _require_json(examples)
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
        fix = f"set `format:` of this source to one of {', '.join(_CONVERSATIONS)}, whichever fits the columns"
        if source.format in ("template", "thumbs"):
            keys = "`prompt`, `completion`" + (" and `rating`" if source.format == "thumbs" else "")
            fix = f"set {keys} of this source to columns that it has"
        if len(columns) == 1 and ";" in next(iter(columns)):
            fix = "save the table with commas between the cells"
        raise UserError(f"{source.dataset} has no column {min(lacking)!r} (it has {', '.join(columns)})", fix)


def _parts(row: Row, source: PreferenceSource, notes: Counter[str]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield prompt, completion and label of each example, with turns as `_turns` leaves them."""
    label = source.label if row.get("label") is None else row["label"]
    match source.format:
        case "paired":
            prompt, chosen, rejected = _split_pair(
                *(_turns(row.get(name)) for name in ("prompt", "chosen", "rejected"))
            )
            yield from ((prompt, chosen, True), (prompt, rejected, False))
        case "messages":
            split = _all_answers if source.answers == "all" else _last_answer
            yield *split(_turns(row["messages"]), notes), label
        case "template" | "thumbs":
            keys = ("data.prompt", "data.completion")
            prompt, completion = (fill(text, row, key) for text, key in zip(source.templates, keys, strict=True))
            if source.conversational:
                prompt = [{"role": "user", "content": prompt}]
                completion = [{"role": "assistant", "content": completion}]
            if source.format == "thumbs":
                yield prompt, completion, _label_of_rating(row[source.rating], source)
            else:  # a column that the text is made of is not its label
                yield prompt, completion, source.label if "label" in source.columns else label
        case _:  # one label is all alternatives', a list holds one for each
            completion = row["completion"]
            holds_several = isinstance(completion, list) and completion and not isinstance(completion[0], dict)
            alternatives = completion if holds_several or isinstance(label, list) else [completion]
            labels = label if isinstance(label, list) else [label] * len(alternatives)
            if not isinstance(alternatives, list) or not labels or len(labels) != len(alternatives):
                raise BadRow("not as many labels as completions")
            prompt = _turns(row["prompt"])
            for one, its_label in zip(alternatives, labels, strict=True):
                yield prompt, _turns([one] if isinstance(one, dict) else one), its_label


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
    first = stop = max((n for n, turn in enumerate(turns, start=1) if turn["role"] == "assistant"), default=0)
    if not stop:
        raise BadRow("messages without an assistant turn")
    while first and turns[first - 1]["role"] == "assistant":
        first -= 1
    if stop < len(turns):
        notes["conversations go on after their last answer, in turns that are not used"] += 1
    return turns[:first], turns[first:stop]


def _all_answers(turns: Any, notes: Counter[str]) -> tuple[Any, Any]:
    """Return the turns before the first answer, and all from there to the last one."""
    before, answer = _last_answer(turns, notes)
    first = next(place for place, turn in enumerate([*before, *answer]) if turn["role"] == "assistant")
    return before[:first], [*before[first:], *answer]


def _turns(value: Any) -> Any:
    """Return turns as chat templates take them, and anything else as it is.

    Keys that are null are left out, as transformers does; parts of text are joined; ShareGPT's `from`, `value`, human
    and gpt become role, content, user and assistant.
    """
    return [read_turn(one) for one in value] if isinstance(value, list) else value


def _example(prompt: Any, completion: Any, label: Any, source: PreferenceSource, notes: Counter[str]) -> Row:
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
        if set(roles) != {"assistant"} and source.answers == "last":
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
