from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ladle.errors import UserError
from ladle.evaluation.benchmark import FieldRule, builtin_benchmarks, load_items, take
from ladle.evaluation.config import BenchmarkChoice

COUNTS = {"aime24": 30, "amc23": 40, "gsm8k": 1319, "math500": 500, "minerva_math": 272, "olympiadbench": 675}


def _write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_six_benchmarks_are_declared_with_a_pinned_commit():
    assert set(builtin_benchmarks()) == set(COUNTS)
    for name, benchmark in builtin_benchmarks().items():
        assert benchmark.items == COUNTS[name]
        assert benchmark.hub is not None
        assert len(benchmark.hub.revision) == 40
        assert benchmark.licence
    assert BenchmarkChoice(name="gsm8k").hub_source().id == "openai/gsm8k"


def test_an_unknown_benchmark_names_the_known_ones():
    with pytest.raises(UserError, match="gsm8k, math500"):
        BenchmarkChoice(name="gsm9k").hub_source()


@pytest.mark.parametrize("name", COUNTS)
def test_every_item_of_the_real_benchmarks_is_read(name, shared_data):
    items = load_items(builtin_benchmarks()[name], [shared_data / "benchmarks"])
    assert [item.idx for item in items] == list(range(COUNTS[name]))
    assert all(item.question and item.gold for item in items)
    assert all(item.gold.count("{") == item.gold.count("}") for item in items)


def test_fields_of_olympiadbench_reach_the_grader(shared_data):
    items = load_items(builtin_benchmarks()["olympiadbench"], [shared_data / "benchmarks"])
    assert sum(item.multiple for item in items) == 94
    assert [item.tolerance for item in items if item.tolerance is not None] == [0.1]
    assert sum(item.unit is not None for item in items) == 8
    assert {item.type for item in items} == {"Numerical", "Expression", "Tuple", "Interval"}


def test_gsm8k_splits_answer_and_solution(tmp_path):
    path = _write(tmp_path / "gsm8k" / "test.jsonl", [{"question": "?", "answer": "a #### b\n#### 1,234"}])
    item = load_items(builtin_benchmarks()["gsm8k"], [tmp_path])[0]
    assert (item.solution, item.gold) == ("a #### b", "1,234")
    assert load_items(builtin_benchmarks()["gsm8k"], [path])[0] == item


def test_minerva_reads_the_hubs_form_too(tmp_path):
    benchmark = builtin_benchmarks()["minerva_math"]
    local = _write(tmp_path / "a.jsonl", [{"problem": "p", "solution": "so \\boxed{\\frac{1}{2}}", "type": "x"}])
    hub = _write(tmp_path / "b.jsonl", [{"question": "p", "answer": "\\frac{1}{2}"}])
    assert load_items(benchmark, [local])[0].gold == load_items(benchmark, [hub])[0].gold == "\\frac{1}{2}"


@pytest.mark.parametrize(
    ("answer", "gold"), [(27.0, "27"), (2.5, "2.5"), (0, "0"), (["4"], "4"), (" x ", "x"), (1e20, "1" + "0" * 20)]
)
def test_answers_are_text_or_numbers(tmp_path, answer, gold):
    path = _write(tmp_path / "mine.jsonl", [{"question": "?", "answer": answer}])
    assert load_items(BenchmarkChoice(name="mine").definition(), [path])[0].gold == gold


@pytest.mark.parametrize("field", ["question", "answer"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "true"),
        (["1", "2"], '"1", "2"'),
        ({"value": 3}, '"value": 3'),
        ([[1]], "[1]"),
        (None, "no "),
        (math.nan, "no "),
    ],
)
def test_what_is_neither_is_refused_by_line_and_never_written_as_python_does(tmp_path, field, value, shown):
    path = _write(
        tmp_path / "mine.jsonl", [{"question": "1?", "answer": "1"}, {"question": "?", "answer": "2"} | {field: value}]
    )
    with pytest.raises(UserError, match=re.escape(shown)) as error:
        load_items(BenchmarkChoice(name="mine").definition(), [path])
    assert str(error.value).startswith(f"line 2 of {path} has ")
    assert field in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "mine has no items"),
        ([{"question": "?", "answer": "1", "idx": 3}] * 2, "two items of the same idx"),
        ([{"question": "?", "answer": "1", "error": "0.1,0.2"}], r"has '0.1,0.2' in error, not a number"),
        ([{"question": "?", "answer": "1", "error": -1}], r"has '-1' in error, not a number"),
    ],
)
def test_files_that_are_refused(tmp_path, rows, message):
    benchmark = BenchmarkChoice(name="mine").definition().model_copy(update={"tolerance_field": "error"})
    with pytest.raises(UserError, match=message):
        load_items(benchmark, [_write(tmp_path / "mine.jsonl", rows)])


def test_questions_that_are_there_twice_are_counted(tmp_path, caplog):
    rows = [{"question": question, "answer": "5"} for question in ("1+4?", "2+3?", "1+4?")]
    assert len(load_items(BenchmarkChoice(name="mine").definition(), [_write(tmp_path / "mine.jsonl", rows)])) == 3
    assert "mine repeats 1 of its 3 questions" in caplog.text


def test_a_flag_written_as_text_is_read(tmp_path):
    rows = [
        {"question": "?", "final_answer": ["1"], "is_multiple_answer": flag} for flag in (True, "True", "False", None)
    ]
    items = load_items(builtin_benchmarks()["olympiadbench"], [_write(tmp_path / "a.jsonl", rows)])
    assert [item.multiple for item in items] == [True, True, False, False]


def test_a_snapshot_of_the_hub_is_read_by_its_file(tmp_path):
    hub = BenchmarkChoice(name="gsm8k").hub_source()
    target = tmp_path / hub.file
    target.parent.mkdir(parents=True)
    pq.write_table(pa.table({"question": ["q"], "answer": ["x #### 5"]}), target)
    _write(tmp_path / "socratic" / "test.jsonl", [{"question": "other", "answer": "x #### 6"}])
    assert load_items(builtin_benchmarks()["gsm8k"], [tmp_path])[0].gold == "5"


def test_any_jsonl_with_question_and_answer_is_a_benchmark(tmp_path):
    path = _write(tmp_path / "mine.jsonl", [{"question": "1+1?", "answer": 2}, {"question": "1+2?", "answer": "3"}])
    items = load_items(BenchmarkChoice(name="mine").definition(), [path])
    assert [(item.idx, item.question, item.gold) for item in items] == [(0, "1+1?", "2"), (1, "1+2?", "3")]


def test_fields_of_a_custom_benchmark_can_be_named(tmp_path):
    choice = BenchmarkChoice(name="mine", question="q", answer="a", type="int")
    item = load_items(choice.definition(), [_write(tmp_path / "mine.jsonl", [{"q": "1+1?", "a": 2}])])[0]
    assert (item.question, item.gold, item.type) == ("1+1?", "2", "int")


def test_a_question_may_be_a_template_over_the_rows_columns(tmp_path):
    path = _write(tmp_path / "mine.jsonl", [{"Body": "A has 2.", "Question": "And B?", "answer": 2}])
    choice = BenchmarkChoice(name="mine", question="{Body} {Question}")
    assert load_items(choice.definition(), [path])[0].question == "A has 2. And B?"
    unknown = BenchmarkChoice(name="mine", question="{Body} {Qestion}").definition()
    message = r"line 1 of .* does not fit the template of the question: there is no column 'Qestion' \(there is Body"
    with pytest.raises(UserError, match=message):
        load_items(unknown, [path])


def test_a_missing_field_names_the_row_and_what_it_has(tmp_path):
    path = _write(tmp_path / "mine.jsonl", [{"question": "1?", "answer": "1"}, {"question": "2?", "reply": "2"}])
    with pytest.raises(
        UserError, match=r"line 2 of .*mine.jsonl has no answer \(looked for answer; it has question, reply\)"
    ):
        load_items(BenchmarkChoice(name="mine").definition(), [path])


def test_another_number_of_items_is_reported(tmp_path, caplog):
    path = _write(tmp_path / "aime.jsonl", [{"question": "?", "answer": "073"}])
    with caplog.at_level("WARNING"):
        assert load_items(builtin_benchmarks()["aime24"], [path])[0].gold == "073"
    assert "1 items here, and 30" in caplog.text


def test_take_is_upstreams_order_of_limit_and_range(tmp_path):
    rows = [{"question": str(n), "answer": "1"} for n in range(10)]
    items = load_items(BenchmarkChoice(name="mine").definition(), [_write(tmp_path / "mine.jsonl", rows)])
    assert [item.idx for item in take(items, 6, 2, -1, "mine")] == [2, 3, 4, 5]
    assert [item.idx for item in take(items, None, 2, 4, "mine")] == [2, 3]
    with pytest.raises(UserError, match="leave no item"):
        take(items, 2, 5, -1, "mine")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("so \\boxed{5}", "5"),
        ("\\boxed{1} or \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{7} and \\boxed{8", "7"),
        ("\\boxed{a \\\\} b}", "a \\\\"),
        ("no box", ""),
    ],
)
def test_the_last_box_of_a_solution_is_its_answer(text, content):
    assert FieldRule(field="solution", rule="boxed").read({"solution": text}) == content


def test_rules_of_missing_fields_give_nothing():
    for rule in ("whole", "first", "boxed", "before", "after"):
        assert FieldRule(field="x", rule=rule, marker="#").read({}) == ""
    assert FieldRule(field="x", rule="first").read({"x": []}) == ""
    assert FieldRule(field="x", rule="after", marker="####").read({"x": "no marker"}) == ""
