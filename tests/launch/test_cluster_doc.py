"""The commands of docs/cluster.md: each is run, as a dry run or a plan where it would take GPUs; its options exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def stand_in(words: list[str]) -> list[str]:
    """Return the command that is run for one of the document: itself, or the same plan without doing it."""
    match words:
        case ["ladle", "doctor" | "status", *_] if "--dry-run" not in words:
            return words[1:]
        case ["ladle", "launch", *rest]:
            return ["launch", *rest, *([] if "--dry-run" in rest else ["--dry-run"])]
        case ["ladle", "run", recipe, "--rehearse", *_]:
            return ["plan", recipe]
        case ["ladle", "run", *rest]:
            return ["plan", *rest]
        case ["ladle", "mix", "--config", recipe, "--executor", executor]:
            return ["plan", recipe, f"mix.executor={executor}"]
    raise AssertionError(f"nothing tries {' '.join(words)}")


@pytest.fixture(scope="module")
def hub_url(repository):
    """A Hub that has every name of the OpenSeek recipes; the models have OpenSeek's config."""
    from tests.hub.server import Hub, serve

    tree = yaml.safe_load((repository / "recipes/openseek/rehearsal.yaml").read_text())
    config = json.dumps(tree["base"]["init"]["architecture"]).encode()
    hub = Hub()
    for name in ("BAAI/OpenSeek-Small-v1", "BAAI/OpenSeek-Small-v1-SFT"):
        hub.add("model", name, {"config.json": config})
    for name in (
        "HuggingFaceFW/fineweb-edu",
        "HuggingFaceFW/fineweb-2",
        "HuggingFaceTB/finemath",
        "codeparrot/codeparrot-clean",
        "AI-MO/NuminaMath-CoT",
        "agentica-org/DeepScaleR-Preview-Dataset",
    ):
        hub.add("dataset", name, {"README.md": b"x"})
    with serve(hub) as url:
        yield url


def ask(repository: Path, hub_url: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside that Hub, its runs in a folder of their own."""
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return ladle(repository, *words, "--root", str(home / "runs"), **settings)


def test_every_command_is_tried(repository, hub_url, tmp_path):
    """`push` needs a finished run, and is tried against the stand-in by tests/pipeline/test_push.py."""
    for words in commands(repository):
        if words[1] == "push":
            continue
        done = ask(repository, hub_url, tmp_path, *stand_in(words))
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0 or words[1] == "doctor", (words, done.stderr)


def test_the_doctor_knows_the_shape_and_what_this_machine_lacks_for_it(repository, hub_url, tmp_path):
    done = ask(repository, hub_url, tmp_path, "doctor", "recipes/openseek/pretrain.yaml", "--json")
    found = {one["subject"]: one for one in json.loads(done.stdout)}
    assert "weights 5.58 GB, gradients 5.58 GB, optimizer 11.2 GB, communication " in found["pretrain"]["message"]
    assert found["base.model"]["level"] == "warning"
    assert "revision: " in found["base.model"]["fix"]


@pytest.mark.parametrize("recipe", ["pretrain", "kto"])
def test_the_dry_runs_of_the_openseek_recipes(repository, hub_url, tmp_path, recipe):
    path = f"recipes/openseek/{recipe}.yaml"
    options = ("--slurm", "--profile", "recipes/slurm/gpu.yaml", "--dry-run")
    done = ask(repository, hub_url, tmp_path, "launch", path, *options)
    assert done.returncode == 0, done.stderr
    script = done.stdout.split(f"# ---- {recipe}.sbatch")[1].split("# ----")[0]
    for line in (
        "--gpus-per-node=8",
        "--time=48:00:00",
        "module load cuda/12.2",
        "conda activate train",
        f"--only {recipe}",
    ):
        assert line in script, script
    assert "export HF_ENDPOINT=https://hf-mirror.com" in script
