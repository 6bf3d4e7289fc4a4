"""The diff of a toy stage in docs/architecture.md, applied to a copy of the package and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_toy_stage_of_the_page_runs(repository, tmp_path):
    (diff,) = re.findall(
        r"```diff\n(.*?)```", (repository / "docs/architecture.md").read_text(encoding="utf-8"), re.DOTALL
    )
    shutil.copytree(repository / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    applied = subprocess.run(["git", "apply", "-C1", "-"], input=diff, text=True, cwd=tmp_path, capture_output=True)
    assert applied.returncode == 0, applied.stderr
    command = [sys.executable, "-m", "ladle", "run", str(repository / "recipes/tiny.yaml"), "--only", "count"]
    settings = ["count.dataset=problems", "count.split=test", "--root", str(tmp_path / "runs")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run([*command, *settings], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (count,) = (tmp_path / "runs").glob("tiny/count/count-*/count.json")
    assert json.loads(count.read_text()) == 60
