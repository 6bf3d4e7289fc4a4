"""kill -9 at many points of a soup: no half file is taken for a whole one, and a restart makes the same bytes.

The stage counts the moments that matter, the file operations in its folder and every block of weights, and kills itself
at the n-th. The command is killed from outside, at random times. LADLE_SOUP_KILL_POINTS sets how many
kills are tried of each.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from ladle.artifacts.record import read_record, verify
from ladle.soups import make
from ladle.soups.config import SoupConfig
from ladle.stages import soup

from .models import random_tensors, read_tree, write_member

NUM_POINTS = int(os.environ.get("LADLE_SOUP_KILL_POINTS", "16"))
SHARDS = (
    ["head", "position_ids"],
    ["embed.weight"],
    ["layers.0.mlp.weight", "layers.0.norm.weight", "layers.0.router_bias"],
)
WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree"}


class Countdown:
    """Counts moments and kills this process at the n-th."""

    def __init__(self, folder: Path, stop_at: int | None) -> None:
        self.folder, self.stop_at, self.seen = str(folder), stop_at, 0

    def count(self) -> None:
        self.seen += 1
        if self.seen == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in WATCHED and str(arguments[0]).startswith(self.folder):
            self.count()

    def counting(self, average_blocks: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def counted(*arguments: Any) -> Iterator[Any]:
            for item in average_blocks(*arguments):
                self.count()
                yield item

        return counted


def run_until(members: list[Path], out: Path, stop_at: int | None, count_file: Path) -> None:
    countdown = Countdown(out, stop_at)
    make.average_blocks = countdown.counting(make.average_blocks)
    sys.addaudithook(countdown.audit)
    soup.run(SoupConfig(), {"members": members}, out)
    count_file.write_text(str(countdown.seen))


class Runs:
    """Runs soups of the same members in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = [write_member(folder / f"m{j}", random_tensors(j, rows=3000), shards=SHARDS) for j in range(3)]
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])

    def run(self, out: Path, stop_at: int | None = None) -> int:
        """Return the exit code, after a run of as many moments as `stop_at` or to the end."""
        out.mkdir(exist_ok=True)
        process = self.context.Process(target=run_until, args=(self.members, out, stop_at, self.folder / "count"))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode


@pytest.mark.slow
def test_every_killed_soup_ends_in_the_same_bytes(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert runs.run(tmp_path / "reference") == 0
    reference = read_tree(tmp_path / "reference")
    num_moments = int((tmp_path / "count").read_text())
    assert num_moments > 50
    chosen = random.Random(0)
    points = [1 + index * num_moments // NUM_POINTS for index in range(NUM_POINTS)]
    for number, point in enumerate(points):
        out = tmp_path / f"killed{number}"
        assert runs.run(out, point) == -signal.SIGKILL
        _check_that_acknowledged_files_are_whole(out, reference)
        if number % 2:  # killed again while it resumes
            runs.run(out, chosen.randint(1, num_moments))
            _check_that_acknowledged_files_are_whole(out, reference)
        assert runs.run(out) == 0
        assert read_tree(out) == reference


@pytest.mark.slow
def test_the_command_killed_at_random_times_ends_in_the_same_bytes(tmp_path: Path) -> None:
    members = [write_member(tmp_path / f"m{j}", random_tensors(j, rows=30_000), shards=SHARDS) for j in range(3)]
    started = time.monotonic()
    assert _start(members, tmp_path / "reference").wait() == 0
    seconds = time.monotonic() - started
    reference = read_record(tmp_path / "reference")
    drawn, kills = random.Random(1), 0
    while kills < NUM_POINTS:
        out = tmp_path / f"out{kills}"
        process = _start(members, out)
        try:
            process.wait(drawn.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        kills += process.returncode == -signal.SIGKILL
        assert not out.exists() or list(verify(out)) == []
        assert _start(members, out).wait() == 0
        record = read_record(out)
        assert (record["digest"], record["fingerprint"]) == (reference["digest"], reference["fingerprint"])
        assert list(verify(out)) == []
        shutil.rmtree(out)
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def _start(members: list[Path], out: Path) -> subprocess.Popen[bytes]:
    root = out.parent / "root"
    command = [sys.executable, "-m", "ladle", "soup", *members, "--out", out, "--root", root]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _check_that_acknowledged_files_are_whole(out: Path, reference: dict[str, bytes]) -> None:
    for path in out.glob("*.safetensors"):
        assert path.read_bytes() == reference[path.name]  # they get their names only when they are
    for record in (out / make.UNFINISHED).rglob("*.safetensors.b3"):
        finished = record.with_suffix("")
        assert record.read_text().strip() == blake3(reference[finished.name]).hexdigest()
        assert not finished.exists() or finished.read_bytes() == reference[finished.name]
    if list(out.glob("*.safetensors")):  # weights get their place last
        assert (out / "merge_info.json").read_bytes() == reference["merge_info.json"]
