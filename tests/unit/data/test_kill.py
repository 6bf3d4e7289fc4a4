"""kill -9 at many points of a mix; what a restart makes of it has to be the same bytes.

Most points are exact: the run counts the file operations it makes (and, in between, the halves of its writes) and
kills itself at the n-th, so that every kind of moment is hit, inside writes too. Some are killed from outside,
workers and all, at random moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ladle.data.config import MixConfig
from ladle.stages import mix

from .samples import make_config, read_tree

Inputs = dict[str, list[Path]]
CONFIG = make_config({"a": 0.5, "b": 0.5}, validation={"fraction": 0.1}, shard_size_bytes=16_384)
WATCHED = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"}
NUM_POINTS = 24


class Countdown:
    """Counts events and kills this process at the n-th."""

    def __init__(self, folder: Path, stop_at: int | None) -> None:
        self.folder, self.stop_at, self.seen = str(folder), stop_at, 0

    def count(self) -> None:
        self.seen += 1
        if self.seen == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED and str(arguments[0]).startswith(self.folder):
            self.count()

    def open_halving(self, open_file: Callable[..., Any]) -> Callable[..., Any]:
        """Make files opened for writing bytes flush and count in the middle of every write."""

        def open_one(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            stream = open_file(path, mode, *arguments, **options)
            return HalvingWriter(stream, self) if mode == "wb" else stream

        return open_one


class HalvingWriter:
    """Writes in two halves, counting between them."""

    def __init__(self, stream: BinaryIO, countdown: Countdown) -> None:
        self.stream, self.countdown = stream, countdown

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self.stream.write(data[:half])
        self.stream.flush()
        self.countdown.count()
        self.stream.write(data[half:])
        return len(data)

    def __enter__(self) -> HalvingWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def run_in_child(config: MixConfig, inputs: Inputs, out: Path, stop_at: int | None) -> int:
    """Run the stage in a forked process; return how it ended (negative: the signal) or, counted out, the events it
    saw."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        countdown = Countdown(out, stop_at)
        Path.open = countdown.open_halving(Path.open)  # type: ignore[method-assign]
        sys.addaudithook(countdown.audit)
        mix.run(config, inputs, out)
        os.write(write_end, str(countdown.seen).encode())
        os._exit(0)
    os.close(write_end)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(read_end) as pipe:
        seen = pipe.read()
    return int(seen) if os.WIFEXITED(status) and seen else -os.WTERMSIG(status)


@pytest.fixture
def inputs(two_sources: Inputs, tokenizer_folder: Path) -> Inputs:
    return {"tokenizer": [tokenizer_folder], **two_sources}


@pytest.mark.slow
def test_killed_at_any_operation_it_ends_with_the_same_bytes(inputs: Inputs, tmp_path: Path):
    whole = tmp_path / "whole"
    whole.mkdir()
    num_events = run_in_child(CONFIG, inputs, whole, None)
    assert num_events > 3 * NUM_POINTS
    expected = read_tree(whole)
    points = random.Random(233).sample(range(1, num_events), NUM_POINTS)
    for point in points:
        out = tmp_path / f"killed-{point}"
        out.mkdir()
        assert run_in_child(CONFIG, inputs, out, point) == -signal.SIGKILL
        mix.run(CONFIG, inputs, out)
        assert read_tree(out) == expected, f"killed at event {point} of {num_events}"


def test_killed_again_and_again_it_still_ends(inputs: Inputs, tmp_path: Path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    out.mkdir()
    whole.mkdir()
    mix.run(CONFIG, inputs, whole)
    for point in (40, 25, 60, 90):
        assert run_in_child(CONFIG, inputs, out, point) == -signal.SIGKILL
    mix.run(CONFIG, inputs, out)
    assert read_tree(out) == read_tree(whole)


PROGRAM = """
import json, sys
from pathlib import Path
from ladle.data import tokenize
from ladle.data.config import MixConfig
from ladle.stages import mix

if __name__ == "__main__":
    tokenize.SMALL_INPUT_BYTES = 0
    config, inputs, out = json.loads(sys.argv[1])
    mix.run(MixConfig.model_validate(config), {role: [Path(p) for p in paths] for role, paths in inputs.items()},
    Path(out))
"""


def start(inputs: Inputs, out: Path, workers: int) -> subprocess.Popen[bytes]:
    import json

    out.mkdir()
    config = CONFIG.model_copy(update={"workers": workers}).model_dump(mode="json")
    arguments = json.dumps([config, {role: [str(path) for path in paths] for role, paths in inputs.items()}, str(out)])
    script = out.parent / "program.py"
    script.write_text(PROGRAM)
    return subprocess.Popen([sys.executable, str(script), arguments], start_new_session=True)


@pytest.mark.slow
def test_killed_with_its_workers_it_ends_with_the_same_bytes(inputs: Inputs, tmp_path: Path):
    started = time.monotonic()
    assert start(inputs, tmp_path / "whole", 2).wait() == 0
    duration = time.monotonic() - started
    expected = read_tree(tmp_path / "whole")
    source = random.Random(233)
    for number in range(8):
        process = start(inputs, tmp_path / f"killed-{number}", 2)
        time.sleep(source.uniform(0.3, 1.0) * duration)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        mix.run(CONFIG, inputs, tmp_path / f"killed-{number}")
        assert read_tree(tmp_path / f"killed-{number}") == expected
