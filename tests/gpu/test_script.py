"""The script of `make gpu`: every phase ends, on a CPU in its tiny size and, where there is a GPU, on that."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])])
def test_every_phase_ends(device, tmp_path, repository):
    out = tmp_path / "gpu.jsonl"
    options = ["--size", "tiny", "--device", device, "--out", str(out), "--patience", "4"]
    command = [sys.executable, str(repository / "benchmarks/gpu.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ends = {row["phase"]: row["state"] for row in rows if row["what"] == "end"}
    assert set(ends.values()) == {"ended"}, [row.get("error") for row in rows if row["what"] == "end"]
    assert done.returncode == 0
    assert len(ends) == 11
    table = done.stdout.partition("| phase | what | figures |")[2]
    assert all(f"| {phase} |" in table for phase in ends)
    found = {row["what"]: row for row in rows}
    assert found["full_determinism"]["equal_bytes"]
    assert found["greedy tokens, deepseek_v3"]["rows_unlike_cpu"] == 0 or device == "cuda"
