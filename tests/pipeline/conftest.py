"""One uninterrupted run of recipes/tiny.yaml that the tests of this folder share."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hub.conftest import client, hub  # noqa: F401 - fixtures of the tests here

LADLE = [sys.executable, "-m", "ladle"]


@dataclass(frozen=True)
class Run:
    """A finished run: where it is kept, and what it printed."""

    root: Path
    stdout: str
    stderr: str

    def artifacts(self) -> dict[str, Path]:
        """Return every finished artifact by its step's name."""
        records = sorted(self.root.glob("*/*/*/record.json"))
        return {json.loads(path.read_text())["name"]: path.parent for path in records}


def ladle(*arguments: object, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*LADLE, *map(str, arguments), *(["--root", str(root)] if root else [])]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def tiny(repository: Path) -> Path:
    return repository / "recipes" / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("runs")
    done = ladle("run", tiny, root=root)
    assert done.returncode == 0, done.stderr
    return Run(root, done.stdout, done.stderr)
