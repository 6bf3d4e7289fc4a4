"""All 2,836 items of the six benchmarks through the stage."""

from __future__ import annotations

import json

import pytest

from ladle.evaluation.benchmark import builtin_benchmarks
from ladle.evaluation.config import EvaluateConfig, EvaluateModelConfig
from ladle.evaluation.rescore import rescore
from ladle.stages import evaluate

NAMES = list(builtin_benchmarks())
RUN_ID = "test_cot_-1_seed1_t0.6_s0_e-1"


@pytest.mark.slow
def test_every_item_of_the_six_benchmarks(model_folder, shared_data, tmp_path):
    config = EvaluateConfig.model_validate(
        {"models": ["base"], "benchmarks": NAMES, "sampling": {"max_new_tokens": 4, "batch_size": 64}}
    )
    inputs = {f"benchmark:{name}": [shared_data / "benchmarks" / name / "test.jsonl"] for name in NAMES}
    one_model = EvaluateModelConfig.of(config, config.models[0])
    summary = evaluate.run(one_model, {"model": [model_folder], **inputs}, tmp_path)
    assert summary.counters == {"items": 2836}
    final = json.loads((tmp_path / "final_result.json").read_text())
    assert set(final["dataset_acc"]) == set(NAMES)
    for name in NAMES:
        rows = (tmp_path / name / f"{RUN_ID}_result.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) == builtin_benchmarks()[name].items
        assert (tmp_path / name / f"{RUN_ID}_metrics.json").is_file()
    # What was stored grades the same again, with and without the benchmark's own files.
    again = rescore(tmp_path)
    assert sum(one.num_answers for one in again) == 2836
    assert [change for one in again for change in one.changes] == []
    with_data = rescore(tmp_path, shared_data / "benchmarks")
    assert [change for one in with_data for change in one.changes] == []
