"""Submitting, with a stand-in for sbatch: what jobs keep of the recipe and of the Hub, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

RECIPE = "name: small\nbase: {model: org/model}\n"
SBATCH = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\nwc -l < "$(dirname "$0")/asked" | tr -d " "\n'
SQUEUE = '#!/bin/sh\ncat "$(dirname "$0")/queue" 2>/dev/null || true\n'


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with sbatch, which numbers its calls, and squeue, which prints the file `queue`."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def launch(client, programs: Path, recipe: Path, *arguments: object, **environment: str):
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    root = programs.parent / "runs"
    return client.ladle("launch", recipe, "--slurm", "--root", root, *arguments, PATH=path, **environment)


def test_jobs_run_the_recipe_and_the_commits_that_were_submitted(hub, client, programs, recipe, tmp_path):
    repository = hub.add("model", "org/model", {"config.json": b"{}"})
    submitted = repository.head
    done = launch(client, programs, recipe)
    assert done.returncode == 0, done.stderr
    recipe.write_text("name: another\n")
    repository.commit({"config.json": b'{"model_type": "other"}'})
    folder = tmp_path / "runs" / "small" / "slurm"
    script = (folder / "base.sbatch").read_text()
    (kept,) = folder.glob("recipe-*.yaml")
    assert f" run {kept} " in script
    assert kept.read_text() == RECIPE
    (commits,) = folder.glob("commits-*.json")
    assert f"export LADLE_HUB_COMMITS={commits}\n" in script
    now = client.ask("resolve_commit", "model", "org/model", None)
    of_the_jobs = client.ask("resolve_commit", "model", "org/model", None, LADLE_HUB_COMMITS=str(commits))
    assert (now["value"], of_the_jobs["value"]) == (repository.head, submitted)


def test_a_pinned_recipe_needs_no_list_of_commits(hub, client, programs, recipe):
    recipe.write_text(RECIPE.replace("org/model", f"org/model, revision: '{'0123456789' * 4}'"))
    done = launch(client, programs, recipe)
    assert done.returncode == 0, done.stderr
    assert not list(recipe.parent.rglob("commits-*.json"))
    assert not hub.requests


def test_what_is_in_the_queue_is_not_submitted_again(hub, client, programs, recipe):
    hub.add("model", "org/model", {"config.json": b"{}"})
    first = launch(client, programs, recipe, "--json")
    assert [row["id"] for row in json.loads(first.stdout)] == ["1"]
    (programs / "queue").write_text("7|ladle-base|RUNNING|None\n1|ladle-base|PENDING|Resources\n")
    again = launch(client, programs, recipe)
    assert "in the queue from an earlier launch: base (1)" in again.stdout
    assert "nothing to submit" in again.stdout
    (programs / "queue").write_text("1|ladle-base|FAILED|NonZeroExitCode\n")
    assert json.loads(launch(client, programs, recipe, "--json").stdout)[0]["id"] == "2"
    (programs / "queue").write_text("2|of another Slurm|RUNNING|None\n")
    assert json.loads(launch(client, programs, recipe, "--json").stdout)[0]["id"] == "3"


def test_a_queue_that_does_not_answer_is_no_empty_queue(hub, client, programs, recipe):
    hub.add("model", "org/model", {"config.json": b"{}"})
    assert launch(client, programs, recipe).returncode == 0
    (programs / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1\n")
    done = launch(client, programs, recipe)
    assert done.returncode == 1
    assert "squeue does not answer (slurm_load_jobs error: Unable to contact)" in done.stderr
    assert len((programs / "asked").read_text().splitlines()) == 1


def test_without_the_hub_a_dry_run_shows_all_scripts_and_a_launch_is_refused(client, programs, recipe):
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    shown = launch(client, programs, recipe, "--dry-run", **away)
    assert shown.returncode == 0, shown.stderr
    assert "base.sbatch: sbatch --parsable" in shown.stdout
    assert "cannot fetch model org/model" in shown.stderr
    assert "shown as not finished" in shown.stderr
    refused = launch(client, programs, recipe, **away)
    assert refused.returncode == 2
    assert not (programs / "asked").exists()


@pytest.mark.parametrize(
    ("resources", "wanted"), [("(null)", False), ("gpu:a800:8(S:0-1)\n(null)", True), (None, True)]
)
def test_gpus_are_asked_of_a_slurm_that_has_some(client, programs, repository, resources, wanted):
    if resources is not None:
        (programs / "sinfo").write_text(f"#!/bin/sh\necho '{resources}'\n")
    else:
        (programs / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    (programs / "sinfo").chmod(0o755)
    shown = launch(client, programs, repository / "recipes/tiny.yaml", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert ("--gpus-per-node" in shown.stdout) is wanted


def test_processes_are_the_recipes_on_slurm(client, programs, recipe):
    done = launch(client, programs, recipe, "--processes", 2)
    assert done.returncode == 2
    assert "pretrain.processes=2" in done.stderr
