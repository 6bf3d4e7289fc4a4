"""Jobs of `ladle launch --slurm`, followed by a test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ladle.artifacts.record import read_record
from tests.pipeline.conftest import Run

PATIENCE_SECONDS = 1500
GOES_ON = re.compile(r"resuming from checkpoint-\d+\n(?:(?!== ).*\n)*?.*step \d+/")
"""In the logs: a training has resumed and made steps since, progress lines between."""
OVER = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def ladle(environment: dict[str, str], cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ladle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)


def wait_until(what: Callable[[], object], describe: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.2)


class Queue:
    """The jobs of one launch."""

    def __init__(self, environment: dict[str, str], submitted: list[dict], root: Path) -> None:
        self.environment, self.root = environment, root
        self.ids = {row["job"]: row["id"] for row in submitted}

    def show(self, job: str) -> dict[str, str]:
        """Return what Slurm knows of a job."""
        done = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", self.ids[job]],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        return dict(field.split("=", 1) for field in done.stdout.split("\n")[0].split() if "=" in field)

    def wait(self) -> None:
        """Wait until every job has left the queue."""

        def left() -> str:
            return subprocess.run(["squeue", "-h"], env=self.environment, capture_output=True, text=True).stdout

        wait_until(lambda: not left().strip(), lambda: left() + self.logs())

    def logs(self, whole: bool = False) -> str:
        """Return the end of every log, or all of it."""
        end = 0 if whole else -4000
        return "\n".join(f"== {path.name}\n{path.read_text()[end:]}" for path in self.root.rglob("logs/*.out"))

    def wait_for_checkpoint(self, job: str) -> None:
        """Wait until a training job has a checkpoint and goes on."""

        def has_one() -> bool:
            state = self.show(job).get("JobState")
            assert state not in OVER, f"{state}\n{self.logs()}"
            return any(self.root.glob(f"*/{job}/*.partial/checkpoints/checkpoint-*"))

        wait_until(has_one, lambda: str(self.show(job)) + self.logs())


def launch(environment: dict[str, str], repository: Path, recipe: Path, root: Path, *arguments: object) -> Queue:
    done = ladle(environment, repository, "launch", recipe, "--slurm", "--root", root, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return Queue(environment, json.loads(done.stdout), root)


def digests(root: Path) -> dict[str, str]:
    return {name: read_record(path)["digest"] for name, path in Run(root, "", "").artifacts().items()}
