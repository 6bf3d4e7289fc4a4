"""The example notebook, its cells executed in their order beside a finished run; it is kept without outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.pipeline.conftest import Run

pytestmark = pytest.mark.xdist_group("pipeline")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(repository, tiny_run: Run, tmp_path):
    notebook = json.loads((repository / "examples" / "python-api.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 8
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook["cells"])
    shutil.copytree(tiny_run.root, tmp_path / "runs")  # what it builds is there, and its plan must say so
    done = subprocess.run([sys.executable, "-c", "\n".join(cells)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("cached", "The answer is", "base to pretrained: ", "correct", "kto.beta: 0.1 → 0.2"):
        assert part in done.stdout, part
