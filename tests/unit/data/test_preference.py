"""Rows of preference data in every form: what they become, what is refused, and what is said of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError
from trl.data_utils import extract_prompt

from ladle.data.config import PreferConfig, PreferenceSource
from ladle.data.prefer import Findings, join_rows, unpaired_rows
from ladle.data.rows import Unreadable
from ladle.errors import UserError

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}
ANSWER, OTHER = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]}
RESULT = {"role": "tool", "name": "add", "content": "4"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def unpair(rows: list[Any], **source: Any) -> tuple[list[dict], Findings]:
    findings = Findings()
    placed = [(f"row {number}", row) for number, row in enumerate(rows, start=1)]
    return list(unpaired_rows(placed, PreferenceSource.model_validate({"dataset": "d", **source}), findings)), findings


def config(**values: Any) -> PreferConfig:
    return PreferConfig.model_validate({"data": ["rollouts"], **values})


def parts(rows: list[dict]) -> list[tuple]:
    return [(row["prompt"], row["completion"], row["label"]) for row in rows]


AB = {"prompt": "a", "completion": "b"}
MESSAGES = {"format": "messages", "label": True}
TEMPLATE = {"format": "template", "label": True, "prompt": "{q}", "completion": "{a}"}
CASES = {
    "other columns are left behind": ({}, AB | {"label": False, "idx": 3}, [("a", "b", False)]),
    "CSV's labels are text": ({}, AB | {"label": "False"}, [("a", "b", False)]),
    "the source's label is for rows that have none": ({"label": True}, AB, [("a", "b", True)]),
    "a null label is none": ({"label": True}, AB | {"label": None}, [("a", "b", True)]),
    "alternatives become one row each": (
        {}, {"prompt": "a", "completion": ["b", "c"], "label": [True, False]}, [("a", "b", True), ("a", "c", False)],
    ),
    "one label is all alternatives'": (
        {}, {"prompt": [USER], "completion": [[ANSWER], [OTHER]], "label": True},
        [([USER], [ANSWER], True), ([USER], [OTHER], True)],
    ),
    "a label for each turn makes them alternatives": (
        {}, {"prompt": [USER], "completion": [ANSWER, OTHER], "label": [True, False]},
        [([USER], [ANSWER], True), ([USER], [OTHER], False)],
    ),
    "two assistant turns with one label are one completion": (
        {}, {"prompt": [USER], "completion": [ANSWER, OTHER], "label": True}, [([USER], [ANSWER, OTHER], True)],
    ),
    "a pair": (
        {"format": "paired"}, {"prompt": "a", "chosen": "b", "rejected": "c"}, [("a", "b", True), ("a", "c", False)],
    ),
    "a pair that holds its prompt as turns beside its text": (
        {"format": "paired"}, {"prompt": "2+2?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        [([USER], [ANSWER], True), ([USER], [OTHER], False)],
    ),
    "a pair that repeats its prompt's turns": (
        {"format": "paired"}, {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        [([USER], [ANSWER], True), ([USER], [OTHER], False)],
    ),
    "a completion that repeats the last turn of its prompt": (
        {}, {"prompt": [SYSTEM, USER], "completion": [USER, ANSWER], "label": True}, [([SYSTEM, USER], [ANSWER], True)],
    ),
    "a completion that repeats its prompt's text": (
        {}, {"prompt": "Q: x", "completion": "Q: x 4", "label": True}, [("Q: x", " 4", True)],
    ),
    "the last answer of messages": (
        MESSAGES, {"messages": [SYSTEM, USER, ANSWER, USER, OTHER]},
        [([SYSTEM, USER, ANSWER, USER], [OTHER], True)],
    ),
    "the row's label wins over the source's": (
        MESSAGES, {"messages": [USER, ANSWER], "label": False}, [([USER], [ANSWER], False)],
    ),
    "turns after the last answer are not used": (
        MESSAGES, {"messages": [USER, ANSWER, USER]}, [([USER], [ANSWER], True)],
    ),
    "an answer of several turns is taken whole": (
        MESSAGES, {"messages": [USER, ANSWER, OTHER]}, [([USER], [ANSWER, OTHER], True)],
    ),
    "ShareGPT's names": (
        MESSAGES,
        {"messages": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, [([USER], [ANSWER], True)],
    ),
    "roles human and gpt": (
        {}, {"prompt": [USER | {"role": "human"}], "completion": [ANSWER | {"role": "gpt"}], "label": True},
        [([USER], [ANSWER], True)],
    ),
    "parts of text are joined, nulls left out, other keys kept": (
        {},
        {"prompt": [USER | {"content": [{"type": "text", "text": text} for text in ("2+", "2?")], "id": 1}],
         "completion": [ANSWER | {"reasoning_content": "r", "weight": None}], "label": True},
        [([USER | {"id": 1}], [ANSWER | {"reasoning_content": "r"}], True)],
    ),
    "a null content beside a tool call": (
        {}, {"prompt": [USER], "completion": [CALL | {"content": None}], "label": False}, [([USER], [CALL], False)],
    ),
    "a template's row label wins": (
        TEMPLATE, {"q": 1.5, "a": "b", "label": False}, [("1.5", "b", False)],
    ),
    "a column that the template's text is made of is not its label": (
        TEMPLATE | {"completion": "{label}"}, {"q": "a", "label": "spam"}, [("a", "spam", True)],
    ),
    "a template for a model that chats": (
        TEMPLATE | {"conversational": True}, {"q": "2+2?", "a": 4}, [([USER], [ANSWER], True)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "row", "expected"), CASES.values(), ids=CASES)
def test_good_rows(source, row, expected):
    rows, findings = unpair([row], **source)
    assert parts(rows) == expected
    assert not findings.bad


@pytest.mark.parametrize(
    ("row", "source", "note"),
    [
        ({"prompt": "Q: x", "completion": "Q: x 4", "label": True}, {}, "repeat their prompt"),
        ({"messages": [USER, ANSWER, USER]}, {"format": "messages", "label": True}, "go on after their last answer"),
        ({"prompt": [USER], "completion": [CALL, RESULT, ANSWER], "label": True}, {}, "turns of others"),
    ],
)
def test_what_is_done_to_a_row_is_counted(row, source, note):
    notes = unpair([row], **source)[1].notes
    assert len(notes) == 1
    assert note in next(iter(notes))


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Hello there", "\n\nHuman: Hi\n\nAssistant: Go away"),
        ("\n\nHuman: Hi\n\nAssistant: I can help", "\n\nHuman: Hi\n\nAssistant: I cannot"),
        ([SYSTEM, USER, ANSWER, USER, ANSWER], [SYSTEM, USER, ANSWER, USER, OTHER]),
    ],
)
def test_a_pair_without_a_prompt_is_split_as_trl_does(chosen, rejected):
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    rows, _ = unpair([{"chosen": chosen, "rejected": rejected}], format="paired")
    both = [(expected["prompt"], expected[side], side == "chosen") for side in ("chosen", "rejected")]
    assert parts(rows) == both


def test_tools_template_arguments_and_token_ids_come_along():
    row = {
        "prompt": [USER],
        "completion": [CALL],
        "label": True,
        "tools": TOOLS,
        "chat_template_kwargs": {"think": True},
    }
    assert unpair([row])[0] == [row]
    assert unpair([row | {"tools": json.dumps(TOOLS)}])[0] == [row]
    ids = {"prompt_ids": [1, 2], "completion_ids": [3], "finish_reason": "stop"}
    sampled = {"prompt": "a", "completion": "b", "label": True}
    assert unpair([sampled | ids])[0] == [sampled | {"prompt_ids": [1, 2], "completion_ids": [3]}]
    assert unpair([sampled | ids | {"finish_reason": "length"}])[0][0]["finish_reason"] == "length"
    stopped = sampled | {"finish_reason": "stop"}
    assert unpair([stopped])[0] == [sampled]  # OpenAI's word for an end token too
    assert unpair([stopped], dataset="rollouts")[0] == [stopped]


UNUSABLE = [
    ({"prompt": "a", "completion": "b", "label": 1}, {}, "not a boolean"),
    ({"prompt": "a", "completion": "b", "label": None}, {}, "no label"),
    ({"prompt": "a", "completion": " ", "label": True}, {}, "empty"),
    ({"prompt": "a", "completion": "a", "label": True}, {}, "empty"),
    ({"prompt": "a", "completion": [], "label": True}, {}, "not both"),
    ({"prompt": "a", "completion": [], "label": []}, {}, "not as many"),
    ({"prompt": "a", "completion": None, "label": True}, {}, "not both text or both messages (text and null)"),
    ({"prompt": "a", "completion": 4, "label": True}, {}, "(text and a number)"),
    ({"prompt": "a", "completion": [ANSWER], "label": True}, {}, "not both"),
    ({"prompt": [USER], "completion": [USER, ANSWER, USER], "label": True}, {}, "begin and end with an assistant"),
    ({"prompt": [SYSTEM], "completion": [USER, ANSWER], "label": True}, {}, "begin and end with an assistant"),
    ({"prompt": [USER, CALL], "completion": [ANSWER], "label": True}, {}, "cannot continue"),
    ({"prompt": [{"content": "x"}], "completion": [ANSWER], "label": True}, {}, "without role"),
    ({"prompt": [{"role": "user"}], "completion": [ANSWER], "label": True}, {}, "without role"),
    ({"prompt": ["x"], "completion": [ANSWER], "label": True}, {}, "in place of a turn"),
    ({"prompt": [USER | {"content": [{"type": "image"}]}], "completion": [ANSWER], "label": True}, {}, "not text"),
    ({"prompt": [USER], "completion": [ANSWER], "label": True, "images": ["x"]}, {}, "images"),
    ({"prompt": [USER], "completion": [ANSWER], "label": True, "tools": "hammer"}, {}, "tools that are not"),
    ({"prompt": [USER], "completion": [ANSWER], "label": True, "chat_template_kwargs": {"tools": 1}}, {}, "set one of"),
    ({"prompt": [USER], "completion": [CALL | {"n": 2**64}], "label": True}, {}, "64 bits"),
    ({"prompt": "a", "completion": "b", "label": True, "prompt_ids": [1]}, {}, "not both lists"),
    ({"chosen": "b", "rejected": "b"}, {"format": "paired"}, "are the same"),
    ({"chosen": [USER, ANSWER], "rejected": [ANSWER]}, {"format": "paired"}, "empty prompt"),
    ({"messages": [USER]}, MESSAGES, "without an assistant turn"),
    ({"messages": [ANSWER, USER]}, MESSAGES, "empty prompt"),
    ({"messages": "2+2?"}, MESSAGES, "messages that are text"),
    ({"messages": [USER, ANSWER]}, {"format": "messages"}, "no label"),
    ({"q": None, "a": "b"}, TEMPLATE, "column 'q' is null"),
    ({"q": True, "a": "b"}, TEMPLATE, "column 'q' is true or false"),
    ({"q": [USER], "a": "b"}, TEMPLATE, "column 'q' is a list"),
    ({"q": "x", "a": "b"}, TEMPLATE | {"prompt": "{q:.2f}"}, "does not fit"),
    ({"q": "x"}, TEMPLATE, "no column 'a'"),
    (Unreadable("bad_json"), {}, "bad_json"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "source", "reason"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_unusable_rows_are_counted_by_reason_and_the_first_is_named(row, source, reason):
    good = {
        "paired": {"chosen": "x y", "rejected": "x z"},
        "messages": {"messages": [USER, ANSWER], "label": True},
        "template": {"q": 1, "a": 2},
    }.get(source.get("format"), {"prompt": "a", "completion": "b", "label": True})
    if isinstance(row, dict) and isinstance(row.get("prompt"), list):
        good = {"prompt": [USER], "completion": [ANSWER], "label": True}
    rows, findings = unpair([good, row, good], **source)
    assert len(rows) == (4 if source.get("format") == "paired" else 2)
    assert findings.bad.total() == 1
    assert reason in next(iter(findings.bad))
    assert findings.first_bad == "row 2"


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"no column 'completion' \(it has prompt, answer\)"):
        unpair([{"prompt": "a", "answer": "b"}])


def test_text_among_messages_is_counted():
    rows, findings = unpair(
        [{"prompt": [USER], "completion": [ANSWER], "label": True}, {"prompt": "a", "completion": "b", "label": True}]
    )
    assert len(rows) == 1
    assert findings.bad == Counter({"text among messages, or messages among text": 1})


@pytest.mark.parametrize(
    ("rating", "label"),
    [("👍", True), ("Thumbs Down", False), (1, True), (0.0, False), (True, True), ("+1", True), ("-1", False)],
)
def test_thumbs_become_labels(rating, label):
    rows, findings = unpair([{"prompt": "a", "completion": "b", "rating": rating}], format="thumbs")
    assert rows == [{"prompt": "a", "completion": "b", "label": label}]
    assert not findings.bad


def test_a_rating_of_neither_kind_is_counted_and_one_of_another_scale_refused():
    row = {"question": "a", "reply": "b", "vote": "meh"}
    source = {"format": "thumbs", "prompt": "{question}", "completion": "{reply}", "rating": "vote"}
    assert unpair([row], **source)[1].bad == Counter({"rating that is neither up nor down": 1})
    with pytest.raises(UserError, match="holds the rating 3"):  # where "1" is the worst of five stars
        unpair([row | {"vote": "1"}, row | {"vote": "3"}], **source)
    stars = source | {"up": ["4", "5"], "down": ["1", "2"]}
    rows, findings = unpair([row | {"vote": vote} for vote in (1, 3, 5.0)], **stars)
    assert [row["label"] for row in rows] == [False, True]
    assert findings.bad.total() == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"prompt": "{question}", "completion": "{answer}"}, "`prompt` belongs to `format: template or thumbs`"),
        ({"conversational": True}, "`conversational` belongs to"),
        ({"format": "paired", "label": True}, "`label` belongs to `format: unpaired or messages or template`"),
        ({"format": "template", "rating": "vote"}, "`rating` belongs to `format: thumbs`"),
        ({"format": "thumbs", "down": ["1", "2"]}, "in both `up` and `down`: 1"),
        ({"format": "thumbs", "up": ["Yes", "no "], "down": ["NO"]}, "in both `up` and `down`: no"),
        ({"format": "template", "prompt": ""}, "whose braces do not all hold a column"),
        ({"split": "*", "into": "test"}, "keeps the splits' names"),
        ({"dataset": "rollouts", "split": "test"}, "rollouts have one split"),
    ],
)
def test_keys_without_effect_and_ratings_of_both_kinds_are_refused(source, problem):
    with pytest.raises(ValidationError, match=problem):
        PreferenceSource.model_validate({"dataset": "d", **source})


def test_text_and_messages_are_refused_before_anything_is_read():
    with pytest.raises(ValidationError, match="t holds text and m messages"):
        config(data=[{"dataset": "t", "format": "template"}, {"dataset": "m", "format": "messages"}])


def test_one_label_can_be_kept_alone():
    rows, findings = unpair([{"prompt": "a", "chosen": "good", "rejected": "bad"}], format="paired", keep_label=True)
    assert [row["completion"] for row in rows] == ["good"]
    assert not findings.bad


def example(number: int, label: bool) -> dict:
    return {"prompt": f"p{number}", "completion": "c", "label": label}


def test_rows_in_equal_rows_out_plus_every_count():
    rows = [example(n % 5, n % 3 == 0) for n in range(20)] + [
        example(n, False) | {"finish_reason": "length"} for n in (7, 8)
    ]
    kept, counters = join_rows(rows, Counter({"empty": 2}), config(balance=True))
    left_out = ("duplicates", "left_out_to_balance", "bad: empty", "cut_completions")
    assert counters["rows_in"] == 24 == counters["rows_out"] + sum(counters[name] for name in left_out)
    assert counters["cut_completions"] == 2
    assert sum(row["label"] for row in kept) * 2 == len(kept) > 0
    assert len(join_rows(rows, Counter(), config(cut_completions="keep", deduplicate=False))[0]) == 22


def test_balancing_per_prompt_keeps_equally_many_of_both_labels_of_each():
    rows = [{"prompt": f"p{n % 6}", "completion": f"c{n}", "label": n % 6 > n // 6} for n in range(30)]
    kept, counters = join_rows(rows, Counter(), config(balance="per_prompt"))
    for prompt in {row["prompt"] for row in rows}:
        given = [row["label"] for row in rows if row["prompt"] == prompt]
        labels = [row["label"] for row in kept if row["prompt"] == prompt]
        assert labels.count(True) == labels.count(False) == min(given.count(True), given.count(False))
    assert counters["rows_out"] + counters["left_out_to_balance"] == 30
    assert [row for row in rows if row in kept] == kept
    assert join_rows(rows, Counter(), config(balance="per_prompt"))[0] == kept


def test_no_rows_at_all_are_refused():
    with pytest.raises(UserError, match="there are no rows to train on"):
        join_rows([], Counter(), config())


def test_balancing_one_label_leaves_nothing_and_says_so():
    with pytest.raises(UserError, match="no preference rows are left"):
        join_rows([example(1, True)], Counter(), config(balance=True))
