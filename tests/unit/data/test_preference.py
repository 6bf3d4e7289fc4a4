from __future__ import annotations

from collections import Counter

import pytest

from ladle.data.config import PreferConfig, PreferenceSource
from ladle.data.prefer import join_rows, unpaired_rows
from ladle.errors import UserError

USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


def unpair(rows: list[dict], **source: object) -> tuple[list[dict], Counter]:
    bad: Counter[str] = Counter()
    return list(unpaired_rows(rows, PreferenceSource.model_validate({"dataset": "d", **source}), bad)), bad


def config(**values: object) -> PreferConfig:
    return PreferConfig.model_validate({"data": ["rollouts"], **values})


def test_unpaired_rows_pass_and_other_columns_are_left_behind():
    rows, bad = unpair([{"prompt": "a", "completion": "b", "label": False, "idx": 3}])
    assert rows == [{"prompt": "a", "completion": "b", "label": False}]
    assert not bad


def test_a_pair_becomes_one_row_of_each_label():
    rows, _ = unpair([{"prompt": "a", "chosen": "good", "rejected": "bad"}], format="paired")
    assert [(row["completion"], row["label"]) for row in rows] == [("good", True), ("bad", False)]


def test_a_pair_of_two_equal_completions_is_counted():
    bad = unpair([{"prompt": "a", "chosen": "b", "rejected": "b"}], format="paired")[1]
    assert bad == {"chosen and rejected are the same": 1}


def test_messages_become_the_first_exchange_as_one_element_lists():
    rows, _ = unpair([{"messages": [USER, ANSWER, USER, ANSWER]}], format="messages", label=True)
    assert rows == [{"prompt": [USER], "completion": [ANSWER], "label": True}]


def test_a_system_turn_belongs_to_the_prompt():
    system = {"role": "system", "content": "Be brief."}
    rows, _ = unpair([{"messages": [system, USER, ANSWER]}], format="messages", label=True)
    assert rows[0]["prompt"] == [system, USER]


@pytest.mark.parametrize(
    ("row", "source", "reason"),
    [
        ({"prompt": "a", "completion": "b", "label": 1}, {}, "not a boolean"),
        ({"prompt": "a", "completion": " ", "label": True}, {}, "empty"),
        ({"prompt": "a", "completion": [ANSWER], "label": True}, {}, "not both"),
        ({"messages": [{"content": "x"}]}, {"format": "messages", "label": True}, "without role"),
        ({"messages": [ANSWER, USER]}, {"format": "messages", "label": True}, "open with"),
        ({"messages": [USER, ANSWER]}, {"format": "messages"}, "not a boolean"),
    ],
)
def test_unusable_rows_are_counted_by_reason(row, source, reason):
    rows, bad = unpair([row], **source)
    assert not rows
    assert len(bad) == 1
    assert reason in next(iter(bad))


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"no column 'completion' \(it has prompt, answer\)"):
        unpair([{"prompt": "a", "answer": "b"}])


def example(number: int, label: bool) -> dict:
    return {"prompt": f"p{number}", "completion": "c", "label": label}


def test_rows_in_equal_rows_out_plus_every_count():
    rows = [example(n % 5, n % 3 == 0) for n in range(20)]
    kept, counters = join_rows(rows, Counter({"empty": 2}), config(balance=True, max_bad_fraction=0.5))
    assert counters["rows_in"] == 22
    assert (
        counters["rows_in"]
        == counters["rows_out"] + counters["duplicates"] + counters["left_out_to_balance"] + counters["bad: empty"]
    )
    assert sum(row["label"] for row in kept) * 2 == len(kept) > 0


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


def test_too_many_unusable_rows_are_refused():
    with pytest.raises(UserError, match=r"2 of 3 preference rows cannot be used \(2 with empty\)"):
        join_rows([example(1, True)], Counter({"empty": 2}), config())


def test_no_rows_at_all_are_refused():
    with pytest.raises(UserError, match="the preference data has no rows"):
        join_rows([], Counter(), config())


def test_balancing_one_label_leaves_nothing_and_says_so():
    with pytest.raises(UserError, match="no preference rows are left"):
        join_rows([example(1, True)], Counter(), config(balance=True))


def test_alternatives_become_one_row_each():
    rows, _ = unpair([{"prompt": "a", "completion": ["b", "c"], "label": True}])
    assert [(row["completion"], row["label"]) for row in rows] == [("b", True), ("c", True)]
    rows, _ = unpair([{"prompt": "a", "completion": ["b", "c"], "label": [True, False]}])
    assert [row["label"] for row in rows] == [True, False]


def test_alternative_answers_of_a_conversation_become_one_row_each_and_a_longer_exchange_does_not():
    other = {"role": "assistant", "content": "four"}
    rows, _ = unpair([{"prompt": [USER], "completion": [ANSWER, other], "label": True}])
    assert [row["completion"] for row in rows] == [[ANSWER], [other]]
    rows, _ = unpair([{"prompt": [USER], "completion": [[ANSWER], [other]], "label": True}])
    assert [row["completion"] for row in rows] == [[ANSWER], [other]]
    exchange = [ANSWER, USER, other]
    rows, _ = unpair([{"prompt": [USER], "completion": exchange, "label": True}])
    assert [row["completion"] for row in rows] == [exchange]


def test_a_conversational_pair_without_a_prompt_is_split_where_it_parts():
    bad_answer = {"role": "assistant", "content": "5"}
    row = {"prompt": "2+2?", "chosen": [USER, ANSWER], "rejected": [USER, bad_answer]}
    rows, _ = unpair([row], format="paired")
    assert [(r["prompt"], r["completion"], r["label"]) for r in rows] == [
        ([USER], [ANSWER], True),
        ([USER], [bad_answer], False),
    ]


@pytest.mark.parametrize(
    ("rating", "label"), [("👍", True), ("Thumbs Down", False), (1, True), (0, False), (True, True), ("up ", True)]
)
def test_thumbs_become_labels(rating, label):
    rows, bad = unpair([{"prompt": "a", "completion": "b", "rating": rating}], format="thumbs")
    assert rows == [{"prompt": "a", "completion": "b", "label": label}]
    assert not bad


def test_a_rating_of_neither_kind_is_counted_and_columns_can_be_named():
    row = {"question": "a", "reply": "b", "vote": "meh"}
    source = {"format": "thumbs", "prompt": "{question}", "completion": "{reply}", "rating": "vote"}
    assert unpair([row], **source)[1] == Counter({"rating that is neither up nor down": 1})
    assert unpair([row | {"vote": "like"}], **source, up=["like"])[0][0]["label"] is True


def test_one_label_can_be_kept_alone():
    rows, bad = unpair([{"prompt": "a", "chosen": "good", "rejected": "bad"}], format="paired", keep_label=True)
    assert [row["completion"] for row in rows] == ["good"]
    assert not bad


def test_turns_keep_role_and_content_alone():
    rows, _ = unpair([{"prompt": [USER | {"id": 1}], "completion": [ANSWER | {"weight": None}], "label": True}])
    assert rows == [{"prompt": [USER], "completion": [ANSWER], "label": True}]


def test_a_turn_without_a_role_is_counted():
    _, bad = unpair([{"prompt": [{"content": "x"}], "completion": [ANSWER], "label": True}])
    assert bad == Counter({"messages without role and content": 1})
