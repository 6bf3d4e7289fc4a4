from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "num_tokens", [300_000_000, pytest.param(30_000_000_000, marks=pytest.mark.slow)], ids=["300M", "30B"]
)
def test_a_plan_over_40_sources_is_quick_and_small(tmp_path: Path, repository: Path, num_tokens: int):
    command = [sys.executable, "-m", "tests.unit.data.plan_at_scale", str(num_tokens), str(tmp_path / "train")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository).stdout
    result = json.loads(output)
    assert result["tokens"] == num_tokens
    assert result["documents"] > num_tokens / 900
    assert result["seconds"] <= 600
    assert result["peak_bytes"] <= 2 * 10**9
    assert result["padding_share"] <= 0.001
