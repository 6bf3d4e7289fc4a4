"""The tutorial, from an empty folder: its files are written and its commands run in a shell, as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"```(bash|python|yaml)\n(.*?)```", re.DOTALL)


def run_block(commands: str, folder: Path) -> str:
    """Run a block in bash, with a `ladle` and a `python` of this environment; return what it printed."""
    programs = folder.parent / "bin"
    programs.mkdir(exist_ok=True)
    for name, command in (("ladle", f"{sys.executable} -m ladle"), ("python", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    shell = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_every_file_and_command_of_the_tutorial_works_as_printed(repository, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    text = (repository / "docs" / "tutorial.md").read_text(encoding="utf-8")
    printed = ""
    for language, content in BLOCK.findall(text):
        if language == "bash":
            printed += run_block(content, folder)
        else:
            name = re.match(r"# ([\w.]+)", content)
            assert name is not None, content
            (folder / name[1]).write_text(content, encoding="utf-8")
    accuracies = {model: float(percent) for model, percent in re.findall(r"^(\w+) +animals +([\d.]+)%", printed, re.M)}
    assert accuracies["base"] < 30 < 80 < min(accuracies["pretrained"], accuracies["kto"])
    assert re.search(r"^--- animals.yaml:kto\n It has \d legs\.$", printed, re.M)  # as people liked it
