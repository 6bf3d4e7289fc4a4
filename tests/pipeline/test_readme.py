"""The README's commands, taken from the README: each block runs, and make targets exist.

The quickstart itself is run by .ci/run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def commands(repository: Path) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return [line for block in BLOCK.findall(text) for line in block.splitlines() if line.strip()]


def test_the_two_commands_come_first_and_are_make_targets(repository):
    assert commands(repository)[:2] == ["make quickstart", "make test"]
    for target in ("quickstart", "test"):
        done = subprocess.run(["make", "-n", target], cwd=repository, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_other_command_runs(repository, tmp_path):
    others = [command for command in commands(repository) if not command.startswith("make ")]
    assert len(others) >= 5
    for command in others:
        words = shlex.split(command)
        assert words[0] == ".venv/bin/ladle", command
        root = [] if words[1] == "grade" else ["--root", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-m", "ladle", *words[1:], *root], cwd=repository, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_every_linked_file_exists(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (repository / target).exists(), target
