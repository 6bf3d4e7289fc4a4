"""kill -9 the real program at moments spread over the run, run it again, and compare bytes with an uninterrupted run.

A moment is a step and a random share of the time that the step took uninterrupted, so that every stage is hit whatever
the machine's speed. LADLE_KILLS sets how many (the first ones hit each stage once), LADLE_KILL_SEED the moments; both
are printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ladle.artifacts.files import hash_file
from ladle.artifacts.record import read_record
from tests.pipeline.conftest import LADLE, Run, ladle

KILLS = int(os.environ.get("LADLE_KILLS", "4"))
SEED = int(os.environ.get("LADLE_KILL_SEED", random.SystemRandom().randrange(2**31)))
COMPARED = ("mix", "pretrain", "soup", "prefer", "kto")
ONE_OF_EACH_STAGE = (
    "pretrain",
    "kto",
    "kto/reference-1",
    "mix",
    "evaluate/soup",
    "soup",
    "rollout",
    "prefer",
    "datasets/problems",
    "base",
    "report",
)


def moments() -> list[tuple[str, float]]:
    rng = random.Random(SEED)
    steps = [
        *ONE_OF_EACH_STAGE,
        *(rng.choice(ONE_OF_EACH_STAGE) for _ in range(max(0, KILLS - len(ONE_OF_EACH_STAGE)))),
    ]
    return [(step, rng.random()) for step in steps[:KILLS]]


def kill_at(tiny: Path, root: Path, step: str, seconds: float) -> bool:
    """Start a run, kill its whole process group `seconds` after `step` began, and tell whether that came in time."""
    process = subprocess.Popen(
        [*LADLE, "run", str(tiny), "--root", str(root)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if f"{step}: new" in line:
            break
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.stderr.close()
    return process.wait() == -signal.SIGKILL


def weights(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("step", "share"), moments(), ids=range(KILLS))
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    tiny: Path, tiny_run: Run, tmp_path: Path, step: str, share: float
):
    reference = tiny_run.artifacts()
    seconds = share * 0.9 * read_record(reference[step])["timings"]["seconds"]
    root = tmp_path / "first"
    while not kill_at(tiny, root, step, seconds):  # the last step can be quicker than it was for the reference
        seconds, root = seconds / 2, root.with_name(f"{root.name}-and-again")
    sys.stdout.write(f"seed {SEED}: killed {seconds:.2f} s into {step}\n")  # pytest shows it, to repeat a failure
    finished = {path: path.stat().st_mtime_ns for path in root.glob("*/*/*/record.json")}
    done = ladle("run", tiny, root=root)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished stage was done again"
    ours = Run(root, "", "").artifacts()
    for name in COMPARED:
        assert read_record(ours[name])["digest"] == read_record(reference[name])["digest"], name
        assert weights(ours[name]) == weights(reference[name]), name
    assert done.stdout.split("report:")[0] == tiny_run.stdout.split("report:")[0]
