"""Slurm scripts: frozen texts, valid bash, what each job waits for and asks for.

To change the frozen texts knowingly: LADLE_WRITE_GOLDEN=1 pytest tests/launch, and a line in CHANGELOG.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ladle.errors import UserError
from ladle.launch.jobs import Call, load_profile, render

GOLDEN = Path(__file__).parent / "golden"
PROFILES = ("gpu", "nodes", "container", "cpu")


def jobs_of(repository: Path, profile, *overrides: str, recipe: str = "tiny"):
    import ladle
    from ladle.launch.jobs import make_jobs

    run = ladle.open(repository / "recipes" / f"{recipe}.yaml", overrides, repository / "absent" / "runs")
    return make_jobs(run.plan(), profile)


def scripts_of(repository: Path, profile_name: str | None) -> dict[str, str]:
    profile = load_profile(repository / f"recipes/slurm/{profile_name}.yaml" if profile_name else None)
    call = Call("recipes/tiny.yaml", ("seed=1",), "runs", "/home/me/ladle", "/opt/ladle/bin/python")
    jobs = jobs_of(repository, profile, "pretrain.processes=8", "kto.processes=8")
    return {job.name: render(job, profile, call, Path("/home/me/ladle/runs/tiny/slurm/logs")) for job in jobs}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("step", ["pretrain", "mix", "evaluate-kto"])
def test_scripts_are_as_they_were(repository, profile, step):
    scripts = {name.replace("/", "-"): text for name, text in scripts_of(repository, profile).items()}
    path = GOLDEN / f"{profile}-{step}.sbatch"
    if os.environ.get("LADLE_WRITE_GOLDEN"):
        path.write_text(scripts[step])
    assert scripts[step] == path.read_text()


@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_scripts_are_valid_bash(repository, profile, tmp_path):
    for name, text in scripts_of(repository, profile).items():
        path = tmp_path / (name.replace("/", "-") + ".sh")
        path.write_text(text)
        checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        assert checked.returncode == 0, f"{name}\n{checked.stderr}"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_shellcheck_has_nothing_to_say(repository, profile, tmp_path):
    paths = []
    for name, text in scripts_of(repository, profile).items():
        paths.append(tmp_path / (name.replace("/", "-") + ".sh"))
        paths[-1].write_text(text)
    checked = subprocess.run(["shellcheck", *paths], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_a_job_waits_for_what_it_reads_and_for_its_shares(repository):
    jobs = {job.name: job for job in jobs_of(repository, load_profile(repository / "recipes/slurm/gpu.yaml"))}
    assert set(jobs["mix.shards"].after) == {"base", "datasets/problems"}
    assert jobs["mix.shards"].shards == 16
    assert "mix.shards" in jobs["mix"].after
    assert set(jobs["pretrain"].after) == {"base", "mix"}
    assert set(jobs["soup"].after) == {"base", "pretrain"}
    assert set(jobs["report"].after) == set(jobs) - {"report", "mix.shards", "rollout.shards"}
    order = list(jobs)
    assert all(order.index(name) < order.index(job.name) for job in jobs.values() for name in job.after)


def test_gpus_and_nodes_follow_the_recipe_and_the_profile(repository):
    profile = load_profile(repository / "recipes/slurm/nodes.yaml")
    jobs = {job.name: job for job in jobs_of(repository, profile, "pretrain.processes=8", "evaluate.workers=4")}
    assert (jobs["pretrain"].nodes, jobs["pretrain"].gpus) == (2, 8)
    assert (jobs["base"].nodes, jobs["base"].gpus) == (1, 1), "the base's own training has one process"
    assert (jobs["mix"].nodes, jobs["mix"].gpus) == (1, 0)
    selecting = ("soup.select=best", "mix.validation.sequences=4", "soup.workers=8")
    selected = {job.name: job for job in jobs_of(repository, profile, *selecting)}
    assert (jobs["soup"].gpus, selected["soup"].gpus) == (0, 1), "averaging needs none, choosing by a loss one"
    assert (jobs["evaluate/kto.shards"].shards, jobs["evaluate/kto.shards"].gpus) == (4, 1)


def test_no_gpus_are_asked_of_a_cluster_without(repository):
    profile = load_profile(repository / "recipes/slurm/cpu.yaml")
    assert all(job.gpus == 0 for job in jobs_of(repository, profile, "pretrain.processes=8"))
    assert "gpus-per-node" not in "".join(scripts_of(repository, "cpu").values())


def test_odd_paths_are_quoted(repository):
    (job,) = [job for job in jobs_of(repository, load_profile(None)) if job.name == "soup"]
    call = Call("my recipe.yaml", ("name=a b",), "all runs", "/home/me/my work", "/opt/my python")
    text = render(job, load_profile(None), call, Path("/home/me/my work/100%/logs"))
    assert "#SBATCH --output='/home/me/my work/100%%/logs/ladle-soup-%j.out'\n" in text
    assert "cd '/home/me/my work'\n" in text
    command = "'/opt/my python' -m ladle run 'my recipe.yaml' 'name=a b' --root 'all runs' --only soup &\n"
    assert command in text


def test_a_step_that_is_one_piece_is_not_shared_out(repository, tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("steps:\n  soup: {shards: 4}\n")
    with pytest.raises(UserError, match="shares soup out over 4 array tasks, and it is one piece"):
        jobs_of(repository, load_profile(path))


def test_nodes_and_containers_do_not_go_together(repository, tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("container: {image: a.sif}\nsteps:\n  pretrain: {nodes: 2}\n")
    with pytest.raises(UserError, match="pretrain is to run on 2 nodes in a container"):
        jobs_of(repository, load_profile(path))


def test_an_unknown_key_of_a_profile_is_named_with_its_line(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("partition: gpu\nmodule: [cuda]\n")
    with pytest.raises(UserError, match=r"did you mean 'modules'\? .*profile.yaml:2"):
        load_profile(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "steps: {pretrian: {nodes: 2}}",
            r"no recipe has a step 'pretrian': did you mean 'pretrain'\?.*profile.yaml:1",
        ),
        ("steps: {'evaluation/*': {shards: 2}}", "no recipe has a step 'evaluation/\\*'"),
        ("time: 24:00:00", 'time is 86400 without quotes, a number to YAML: put it in quotes: time: "24:00:00"'),
        ("signal_seconds: 70000", "less than or equal to 65535"),
        ("cpus_per_task: 0", "greater than or equal to 1"),
    ],
)
def test_a_slip_in_a_profile_is_told(tmp_path, line, message):
    path = tmp_path / "profile.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        load_profile(path)


def test_a_profile_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no profile at .*absent.yaml"):
        load_profile(tmp_path / "absent.yaml")


def test_numbers_of_the_environment_are_words(tmp_path, repository):
    path = tmp_path / "profile.yaml"
    path.write_text("environment: {OMP_NUM_THREADS: 2}\nmemory: 4000\nsteps: {'*': {cpus_per_task: 2}}\n")
    profile = load_profile(path)
    (job,) = [job for job in jobs_of(repository, profile) if job.name == "soup"]
    text = render(job, profile, Call("r.yaml", (), "runs", "/home/me", "python"), Path("/home/me/logs"))
    for line in ("export OMP_NUM_THREADS=2\n", "#SBATCH --mem=4000\n", "#SBATCH --cpus-per-task=2\n"):
        assert line in text


def ladle(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ladle", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )


def test_a_dry_run_prints_every_script_and_writes_nothing(repository, tmp_path):
    done = ladle(
        *("launch", "recipes/tiny.yaml", "--slurm", "--profile", "recipes/slurm/gpu.yaml", "--dry-run", "--json"),
        *("--root", tmp_path / "runs"),
        cwd=repository,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["job"]: row for row in json.loads(done.stdout)}
    assert {"mix.shards", "mix", "pretrain", "soup", "rollout", "prefer", "kto", "evaluate/kto", "report"} <= set(rows)
    assert '--shard "$SLURM_ARRAY_TASK_ID/16"' in rows["mix.shards"]["script"]
    assert not list((tmp_path / "runs").rglob("*.sbatch"))


def test_a_local_dry_run_shows_torchrun(repository, tmp_path):
    done = ladle("launch", "recipes/tiny.yaml", "--processes", 2, "--dry-run", "--root", tmp_path, cwd=repository)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    for name in ("base", "pretrain", "kto"):
        assert "ladle.artifacts.torchrun --standalone --nproc_per_node=2" in lines[name]
    assert lines["mix"] == "in this process"


def test_without_sbatch_it_says_so(repository, tmp_path):
    done = ladle("launch", "recipes/tiny.yaml", "--slurm", "--root", tmp_path, cwd=repository, PATH="/nonexistent")
    assert done.returncode == 2
    assert "there is no sbatch on this machine: run this on a login node, or look at the scripts with --dry-run" in (
        done.stderr
    )
