"""All 2,836 items of the six benchmarks through the stage, and a killed run of them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ladle.evaluation.benchmark import builtin_benchmarks
from ladle.evaluation.config import EvaluateConfig, EvaluateModelConfig
from ladle.evaluation.rescore import rescore
from ladle.grading.grade import GraderConfig
from ladle.stages import evaluate

NAMES = list(builtin_benchmarks())
RUN_ID = "test_cot_-1_seed1_t0.6_s0_e-1"

SCRIPT = """
import sys
from pathlib import Path
from ladle.evaluation.config import EvaluateConfig, EvaluateModelConfig
from ladle.stages import evaluate
model, problems, out = map(Path, sys.argv[1:])
config = EvaluateConfig.model_validate({
    "models": ["base"], "benchmarks": ["gsm8k"], "limit": 150,
    "sampling": {"max_new_tokens": 48, "samples": 4, "batch_size": 16},
})
evaluate.run(EvaluateModelConfig.of(config, config.models[0]), {"model": [model], "benchmark:gsm8k": [problems]}, out)
"""


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
    again = rescore(tmp_path, GraderConfig())
    assert sum(one.num_answers for one in again) == 2836
    assert [change for one in again for change in one.changes] == []
    with_data = rescore(tmp_path, GraderConfig(), shared_data / "benchmarks")
    assert [change for one in with_data for change in one.changes] == []


@pytest.mark.slow
def test_twenty_kills_leave_the_bytes_of_a_whole_run(model_folder, shared_data, tmp_path):
    problems = shared_data / "benchmarks" / "gsm8k" / "test.jsonl"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _run(model_folder, problems, whole).wait()
    rng = random.Random(20)
    kills = 0
    while kills < 20:
        process = _run(model_folder, problems, killed)
        grown = _log_size(killed) + rng.randrange(1, 4000)
        # Past the start-up, at a moment that the growth of the log and chance decide.
        while process.poll() is None and _log_size(killed) < grown:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        assert process.poll() is None, f"it ended after {kills} kills: give it more to do"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert _run(model_folder, problems, killed).wait() == 0
    name = f"gsm8k/{'test_cot_150_seed1_t0.6_s0_e-1'}_result.jsonl"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()


def _run(model: Path, problems: Path, out: Path) -> subprocess.Popen[bytes]:
    out.mkdir(exist_ok=True)
    arguments = [sys.executable, "-c", SCRIPT, *map(str, (model, problems, out))]
    return subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _log_size(out: Path) -> int:
    return sum(path.stat().st_size for path in out.rglob(".samples-*.jsonl"))
