from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ladle.errors import UserError
from ladle.evaluation.compare import compare_runs
from ladle.evaluation.statistics import mcnemar_p_value
from ladle.reporting.collect import collect_changes

NAME = "test_cot_-1_seed1_t0.6_s0_e-1_result.jsonl"


def _write(folder: Path, benchmark: str, scores: list[list[bool]], first_idx: int = 0, name: str = NAME) -> Path:
    path = folder / benchmark / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"idx": idx, "question": f"{idx}?", "gt": "1", "pred": ["1" if one else "0" for one in score], "score": score}
        for idx, score in enumerate(scores, start=first_idx)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _single(text: str) -> list[list[bool]]:
    return [[letter == "1"] for letter in text]


def test_paired_difference_and_flips(tmp_path):
    first = _write(tmp_path / "a", "gsm8k", _single("1100000000"))
    second = _write(tmp_path / "b", "gsm8k", _single("0111100000"))
    comparison = compare_runs(first, second)
    (result,) = comparison.benchmarks
    assert (result.n, result.first, result.second, result.unpaired) == (10, 0.2, 0.4, 0)
    assert result.difference == pytest.approx(0.2)
    assert (result.only_first, result.only_second) == (1, 3)
    assert result.p_value == mcnemar_p_value(1, 3)
    assert result.low < 0.2 < result.high
    assert result.minimum_detectable_effect is not None
    assert result.minimum_detectable_effect > 0.4
    assert result.items_to_detect is not None
    assert result.items_to_detect > 40
    assert [(flip.idx, flip.first, flip.second) for flip in comparison.flipped] == [
        (0, 1, 0),
        (2, 0, 1),
        (3, 0, 1),
        (4, 0, 1),
    ]
    overall = comparison.overall
    assert overall.n == 10
    assert (comparison.difference, comparison.p_value) == (overall.difference, overall.p_value)
    assert comparison.interval == (overall.low, overall.high)


def test_the_report_compares_each_model_with_the_one_it_was_made_from(tmp_path):
    """Within an evaluation; models that share no history with one before them are compared with the last one.

    Last comes what was gained: the last model over the first one behind it.
    """
    made_from = {
        "pretrain": ["base", "mix"], "mix": ["base"], "soup": ["base", "pretrain"], "rollout": ["soup"],
        "sft": ["soup", "rollout"], "training": ["soup", "rollout"], "kto": ["soup", "training"],
    }  # fmt: skip
    records: Any = {name: (tmp_path, _record(name, inputs)) for name, inputs in made_from.items()}
    evaluated = ["base", "pretrain", "soup", "sft", "kto", "other", "folder", "folder-2"]
    for name in [*evaluated, "greedy/base", "greedy/kto", "chain/base", "chain/soup", "chain/kto"]:
        folder = _write(tmp_path / name.replace("/", "-"), "gsm8k", _single("1010"))
        records[f"evaluate/{name}"] = folder, _record(f"evaluate/{name}", [name.split("/")[-1]], "evaluate")
        if name.startswith("folder"):  # a model on disk, which no step made
            del records[f"evaluate/{name}"][1]["inputs"]["model"][0]["fingerprint"]
    pairs = [(before, after) for before, after, _ in collect_changes(records)]
    within = [("base", "pretrain"), ("pretrain", "soup"), ("soup", "sft"), ("soup", "kto"), ("kto", "other")]
    within += [("other", "folder"), ("folder", "folder-2")]
    chain = [("chain/base", "chain/soup"), ("chain/soup", "chain/kto"), ("chain/base", "chain/kto")]
    assert pairs == [*within, ("greedy/base", "greedy/kto"), *chain]


def _record(name: str, inputs: list[str], stage: str = "other") -> dict[str, Any]:
    used = {"model": [{"fingerprint": one} for one in inputs], "file": [{"path": "x", "digest": "1"}]}
    return {"stage": stage, "fingerprint": name, "inputs": used}


def test_a_model_against_itself(tmp_path):
    folder = _write(tmp_path / "a", "gsm8k", _single("1100"))
    comparison = compare_runs(folder, folder)
    (result,) = comparison.benchmarks
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    assert result.items_to_detect is None
    assert comparison.flipped == []


def test_benchmarks_in_common_and_all_items_together(tmp_path, caplog):
    first, second = tmp_path / "a", tmp_path / "b"
    for benchmark, ours, theirs in (("gsm8k", "1111", "1011"), ("math500", "0" * 12, "1" * 6 + "0" * 6)):
        _write(first, benchmark, _single(ours))
        _write(second, benchmark, _single(theirs))
    _write(first, "aime24", _single("1"))
    comparison = compare_runs(first, second)
    assert [result.benchmark for result in comparison.benchmarks] == ["gsm8k", "math500"]
    assert comparison.left_out == ["aime24"]
    assert "aime24" in caplog.text
    assert comparison.overall.n == 16
    assert comparison.overall.difference == pytest.approx(5 / 16)
    assert comparison.overall.p_value == mcnemar_p_value(1, 6)


def test_several_samples_are_tested_by_random_signs(tmp_path):
    first = _write(tmp_path / "a", "aime24", [[True, False], [False, False], [True, True]])
    second = _write(tmp_path / "b", "aime24", [[True, True], [True, False], [True, True]])
    (result,) = compare_runs(first, second).benchmarks
    assert result.test == "random signs"
    assert result.difference == pytest.approx(1 / 3)
    assert 0.4 < result.p_value < 0.6  # both signs are the same half the time


def test_pass_at_k_is_paired_up_to_the_fewest_samples(tmp_path):
    first = _write(tmp_path / "a", "aime24", [[True] * 4, [False] * 4, [False] * 4, [True, False, False, False]])
    second = _write(tmp_path / "b", "aime24", [[True] + [False] * 3] * 4)
    comparison = compare_runs(first, second)
    assert [(one.benchmark, one.k) for one in comparison.pass_at_k] == [
        *(("aime24", 2), ("aime24", 4), ("all items", 2), ("all items", 4)),
    ]
    two, four, *_ = comparison.pass_at_k
    # of two in four samples the right one is picked with 1/2
    assert (two.first, two.second) == (pytest.approx((1 + 0.5) / 4), 0.5)
    assert (four.first, four.second, four.only_first, four.only_second) == (0.5, 1, 0, 2)
    assert four.test == "random signs"
    assert 0.4 < four.p_value < 0.6  # both signs are the same half the time
    assert comparison.difference < 0 < four.difference  # better at many samples, worse at one
    single = _write(tmp_path / "c", "aime24", _single("1000"))
    assert compare_runs(single, second).pass_at_k == []


def test_items_of_one_run_only_are_counted(tmp_path, caplog):
    first = _write(tmp_path / "a", "gsm8k", _single("11110"))
    second = _write(tmp_path / "b", "gsm8k", _single("1100"), first_idx=2)
    (result,) = compare_runs(first, second).benchmarks
    assert (result.n, result.unpaired) == (3, 3)
    assert "gsm8k: 3 items that only one of the two answered" in caplog.text


def test_files_can_be_named(tmp_path):
    first = _write(tmp_path / "a", "gsm8k", _single("10")) / "gsm8k" / NAME
    second = _write(tmp_path / "b", "gsm8k", _single("11")) / "gsm8k" / NAME
    assert compare_runs(first, second).overall.only_second == 1


def test_what_cannot_be_compared(tmp_path):
    first = _write(tmp_path / "a", "gsm8k", _single("10"))
    with pytest.raises(UserError, match="no benchmark in common"):
        compare_runs(first, _write(tmp_path / "b", "math500", _single("10")))
    with pytest.raises(UserError, match="no item in common"):
        compare_runs(first, _write(tmp_path / "c", "gsm8k", _single("10"), first_idx=5))
    _write(first, "gsm8k", _single("11"), name=NAME.replace("seed1", "seed2"))
    with pytest.raises(UserError, match="several runs of gsm8k"):
        compare_runs(first, first)


def test_another_question_under_the_same_idx(tmp_path):
    first = _write(tmp_path / "a", "gsm8k", _single("10"))
    second = _write(tmp_path / "b", "gsm8k", _single("10"))
    path = second / "gsm8k" / NAME
    path.write_text(path.read_text().replace('"1?"', '"another?"'))
    with pytest.raises(UserError, match="another question"):
        compare_runs(first, second)
