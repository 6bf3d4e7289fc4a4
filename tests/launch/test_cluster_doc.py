"""The commands of docs/cluster.md: each dry run is run, and of the others the options exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def commands(repository: Path) -> list[list[str]]:
    text = (repository / "docs" / "cluster.md").read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines() if line.startswith("ladle ")]
    return [shlex.split(line, comments=True) for line in lines]


def ladle(repository: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ladle", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, env=os.environ | environment)


def test_every_recipe_profile_and_option_it_names_exists(repository):
    found = commands(repository)
    assert len(found) >= 12
    helps: dict[str, str] = {}
    for words in found:
        name = words[1]
        helps.setdefault(name, ladle(repository, name, "--help", COLUMNS="200").stdout)
        for word in words[2:]:
            if word.startswith("--"):
                assert word in helps[name], words
            if word.startswith("recipes/"):
                assert (repository / word).is_file(), words


@pytest.mark.parametrize("recipe", ["pretrain", "kto"])
def test_the_dry_runs_of_the_openseek_recipes(repository, tmp_path, recipe):
    """Without a network: the Hub's names are pinned and stand for local files."""
    from tests.hub.server import Hub, serve

    hub = Hub()
    for kind, name in (
        ("model", "BAAI/OpenSeek-Small-v1"),
        ("model", "BAAI/OpenSeek-Small-v1-SFT"),
        ("dataset", "HuggingFaceFW/fineweb-edu"),
        ("dataset", "HuggingFaceFW/fineweb-2"),
        ("dataset", "HuggingFaceTB/finemath"),
        ("dataset", "codeparrot/codeparrot-clean"),
        ("dataset", "AI-MO/NuminaMath-CoT"),
    ):
        hub.add(kind, name, {"README.md": b"x"})
    path = f"recipes/openseek/{recipe}.yaml"
    if not (repository / path).is_file():
        pytest.skip(f"{path} is absent")
    with serve(hub) as url:
        done = ladle(
            repository,
            *("launch", path, "--slurm", "--profile", "recipes/slurm/gpu.yaml", "--dry-run"),
            *("--root", str(tmp_path / "runs")),
            HF_ENDPOINT=url,
            HF_HOME=str(tmp_path),
            HF_HUB_OFFLINE="0",
        )
    assert done.returncode == 0, done.stderr
    step = "pretrain" if recipe == "pretrain" else "kto"
    script = done.stdout.split(f"/{step}.sbatch")[1].split("# ----")[0]
    for line in (
        "--gpus-per-node=8",
        "--time=48:00:00",
        "module load cuda/12.2",
        "conda activate train",
        f"--only {step}",
    ):
        assert line in script, script
    assert "export HF_ENDPOINT=https://hf-mirror.com" in script
