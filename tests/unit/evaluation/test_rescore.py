from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ladle.errors import UserError
from ladle.evaluation.benchmark import Item
from ladle.evaluation.config import EvaluateModelConfig
from ladle.evaluation.rescore import rescore
from ladle.evaluation.results import find_results, make_row
from ladle.generation.request import Sample
from ladle.grading.grade import Grade, Verdict

RUN = "test_cot_-1_seed0_t0.6_s0_e16"
SPELLINGS = {
    "seeds": RUN + "_result.jsonl",
    "OpenSeek": RUN + "qwen_result.jsonl",
    "Qwen2.5-Math": RUN + ".jsonl",
}


def _upstream_row(idx: int, gt: str, code: list[str], score: list[bool], **fields: Any) -> dict[str, Any]:
    return {
        "idx": idx,
        "question": f"question {idx}",
        "gt_cot": "",
        "gt": gt,
        **fields,
        "code": code,
        "pred": ["?"] * len(code),
        "report": [None] * len(code),
        "score": score,
    }


ROWS = [
    # Upstream's normaliser deleted the letters of this gold answer; its solution still has them.
    _upstream_row(0, "\\frac{}{2}", ["\\boxed{\\frac{ab}{2}}"], [False], solution="so \\boxed{\\frac{ab}{2}}."),
    _upstream_row(1, "10000", ["It is $\\boxed{10{,}000}$."], [False], answer="10000"),
    _upstream_row(2, "7", ["\\boxed{7}"], [True], answer="7"),
    _upstream_row(3, "8", ["\\boxed{9}"], [True], answer="8"),
    _upstream_row(4, "5", ["I do not know."], [False], answer="5"),
]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read_and_every_changed_verdict_listed(tmp_path, spelling):
    _write(tmp_path / "math500" / SPELLINGS[spelling], ROWS)
    (tmp_path / "math500" / (RUN + "_cot_metrics.json")).write_text("{}")
    (one,) = rescore(tmp_path)
    assert (one.benchmark, one.run_id, one.rows, one.num_answers) == ("math500", RUN, 5, 5)
    assert [(change.idx, change.stored, change.verdict) for change in one.changes] == [
        (0, False, "correct"),
        (1, False, "correct"),
        (3, True, "wrong"),
    ]
    assert one.changes[0].gold == "\\frac{ab}{2}"
    assert all(change.reason for change in one.changes)
    assert (one.accuracy_before, one.accuracy_after) == (0.4, 0.6)


def test_one_file_and_several_samples(tmp_path):
    row = _upstream_row(0, "7", ["\\boxed{7}", "\\boxed{8}", "\\boxed{7.0}"], [True, True, False], answer="7")
    (one,) = rescore(_write(tmp_path / "amc23" / SPELLINGS["seeds"], [row]))
    assert [(change.sample, change.verdict) for change in one.changes] == [(1, "wrong"), (2, "correct")]


def test_a_row_without_completions_is_graded_by_its_answer(tmp_path):
    row = _upstream_row(0, "7", [], [False], answer="7") | {"pred": ["7"]}
    (one,) = rescore(_write(tmp_path / "amc23" / SPELLINGS["seeds"], [row]))
    assert [change.verdict for change in one.changes] == ["correct"]


def test_data_gives_units_and_tolerances(tmp_path):
    row = _upstream_row(0, "4.2", ["\\boxed{4.25}"], [False])
    stored = _write(tmp_path / "out" / "olympiadbench" / SPELLINGS["seeds"], [row])
    item = {"question": "question 0", "solution": ["s"], "final_answer": ["4.2"], "unit": "%", "error": "1e-1"}
    data = _write(tmp_path / "data" / "olympiadbench" / "test.jsonl", [item]).parent.parent
    assert rescore(stored)[0].changes == []
    assert [change.verdict for change in rescore(stored, data)[0].changes] == ["correct"]
    _write(data / "olympiadbench" / "test.jsonl", [item | {"question": "another"}])
    with pytest.raises(UserError, match="is not item 0 of olympiadbench"):
        rescore(stored, data)


def test_no_result_files(tmp_path):
    _write(tmp_path / "math500" / "notes.jsonl", [{"a": 1}])
    with pytest.raises(UserError, match="no result files"):
        rescore(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"), [({"idx": 0, "gt": "1"}, "has no score"), ({"idx": 0, "gt": "1", "score": []}, "has no score")]
)
def test_a_file_that_no_evaluation_wrote(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        rescore(_write(tmp_path / "math500" / SPELLINGS["seeds"], [row]))


def test_run_ids_are_upstreams():
    greedy = {"prompt": "qwen25-math-cot", "sampling": {"seed": 0, "temperature": 0}}
    part = {"prompt": "openseek_sft", "limit": 50, "start": 2, "end": 16}
    for fields, name in (
        (greedy, "test_qwen25-math-cot_-1_seed0_t0.0_s0_e-1"),
        (part, "test_openseek_sft_50_seed1_t0.6_s2_e16"),
    ):
        config = EvaluateModelConfig.model_validate({"benchmarks": ["gsm8k"]} | fields)
        assert config.run_id(config.benchmarks[0]) == name


def test_a_name_with_underscores_is_recognised(tmp_path):
    path = _write(tmp_path / "math500" / "test_openseek_sft_50_seed1_t0.6_s2_e16_result.jsonl", ROWS)
    assert find_results(path)[0].run_id == "test_openseek_sft_50_seed1_t0.6_s2_e16"


def test_the_reason_of_a_timeout_does_not_say_what_the_machines_load_decided():
    sample = Sample("x/0/0", [1], "7", "eos")
    rows = [
        make_row(Item(0, "?", "7"), [sample], [Grade(Verdict.TIMEOUT, reason, seconds, "7", "boxed")])
        for reason, seconds in (("more than 0.5 s of CPU time", 0.5), ("the worker ended with status -9, twice", 2.8))
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("fields", [{"score": True}, {"score": [True, False]}, {"code": "text"}])
def test_a_row_of_another_shape_is_refused(tmp_path, fields):
    with pytest.raises(UserError, match="row 1 of .* another number of answers than of scores"):
        rescore(_write(tmp_path / "amc23" / SPELLINGS["seeds"], [ROWS[2] | fields]))
