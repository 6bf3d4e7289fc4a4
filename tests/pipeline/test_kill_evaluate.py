"""kill -9 `ladle evaluate` at random numbers of finished samples and while it grades; the result file ends the same.

LADLE_KILLS sets how many kills there are, LADLE_KILL_SEED where; both are printed. Kills come several to a run, since a
run that was resumed may be killed as well.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ladle.models.load import save_model
from tests.pipeline.conftest import LADLE
from tests.tiny_models import make_model, make_tokenizer

KILLS = int(os.environ.get("LADLE_KILLS", "20"))
SEED = int(os.environ.get("LADLE_KILL_SEED", random.SystemRandom().randrange(2**31)))
KILLS_OF_A_RUN = 5
ITEMS, SAMPLES = 40, 3
ALL = ITEMS * SAMPLES
START_SECONDS = 300


def kill_points() -> list[list[int]]:
    """Numbers of samples after which to kill, rising within each run; the last of a run lies after the last sample."""
    rng = random.Random(SEED)
    points = [sorted(rng.sample(range(ALL), KILLS_OF_A_RUN - 1)) + [ALL] for _ in range(KILLS // KILLS_OF_A_RUN + 1)]
    flat = [(run, point) for run, of_run in enumerate(points) for point in of_run][:KILLS]
    return [[point for number, point in flat if number == run] for run in range(flat[-1][0] + 1)]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("evaluate")
    save_model(make_model("qwen3"), make_tokenizer(), folder / "model")
    rows = [{"question": f"{n} plus {n + 1}?", "answer": 2 * n + 1} for n in range(ITEMS)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampling = {"samples": SAMPLES, "max_new_tokens": 96, "batch_size": 4, "temperature": 1.0}
    given = [f"sampling.{name}={value}" for name, value in sampling.items()]
    return [*LADLE, "evaluate", str(folder / "model"), "--benchmarks", str(folder / "sums.jsonl"), *given]


def result_of(root: Path) -> bytes:
    (path,) = root.rglob("*_result.jsonl")
    return path.read_bytes()


def finished_samples(root: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in root.rglob(".samples-*.jsonl"))


def run_until(command: list[str], root: Path, samples: int, rng: random.Random) -> bool:
    """Start an evaluation and kill it once its log holds so many samples; after the last one, at a random moment.

    Returns whether it was still running then.
    """
    process = subprocess.Popen(
        [*command, "--out", str(root / "out"), "--root", str(root)], stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + START_SECONDS
    while finished_samples(root) < samples and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3) if samples == ALL else 0)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    # The run may be over before a kill after its last sample, and before no other.
    assert process.returncode == -signal.SIGKILL or samples == ALL and process.returncode == 0, said.decode()
    return process.returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_evaluations_end_with_the_same_bytes(command: list[str], tmp_path: Path):
    whole = subprocess.run([*command, "--out", str(tmp_path / "whole"), "--root", str(tmp_path)], check=False)
    assert whole.returncode == 0
    expected, rng = result_of(tmp_path / "whole"), random.Random(SEED)
    for number, points in enumerate(kill_points()):
        root = tmp_path / str(number)
        root.mkdir()
        hits = sum(run_until(command, root, point, rng) for point in points)
        sys.stdout.write(f"seed {SEED}: {hits} kills, after {points} of {ALL} samples\n")
        assert hits >= len(points) - 1
        done = subprocess.run([*command, "--out", str(root / "out"), "--root", str(root)], check=False)
        assert done.returncode == 0
        assert result_of(root / "out") == expected
