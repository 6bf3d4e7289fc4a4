"""The quickstart on a real Slurm by `ladle launch --slurm` alone, against `ladle run`: every byte but the times.

Its pretraining is first told to save, as before a time limit, and puts itself back into the queue; then it is taken
away as by preemption. About ten minutes on two cores, or half of that with the root of a finished `ladle run`.

    python -m tests.slurm.quickstart [--plain ROOT]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ladle.artifacts.record import read_record
from tests.pipeline.conftest import Run
from tests.slurm.cluster import slurm, why_absent
from tests.slurm.jobs import GOES_ON, Queue, digests, ladle, launch, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = Path("recipes/quickstart.yaml")
JOB = "pretrain"
TIMES = re.compile(r"second|time|speed|per_s|_at$", re.IGNORECASE)
"""Keys of an evaluation's metrics that say when or how fast it ran."""


def main() -> None:
    """Run both and compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", type=Path, help="root of a finished `ladle run recipes/quickstart.yaml`")
    plain = parser.parse_args().plain
    if why_absent():
        sys.exit(f"no Slurm here: {why_absent()}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "by-slurm"
        with slurm(Path(folder)) as environment:
            follow(launch(environment, REPOSITORY, RECIPE, root), environment)
        if plain is None:
            plain = Path(folder) / "plain"
            say("ladle run")
            done = ladle(dict(os.environ), REPOSITORY, "run", RECIPE, "--root", plain)
            assert done.returncode == 0, done.stderr
        compare(root, plain)


def follow(queue: Queue, environment: dict[str, str]) -> None:
    """Wait for the jobs, and take the training away twice."""
    say(f"submitted {len(queue.ids)} jobs")
    queue.wait_for_checkpoint(JOB)
    subprocess.run(["scancel", "--signal=USR1", "--batch", queue.ids[JOB]], env=environment, check=True)
    wait_until(lambda: queue.show(JOB).get("Restarts") == "1", queue.logs)
    say(f"{JOB} was told to save: {line_of(queue, 'stopped and saved')}")
    wait_until(lambda: GOES_ON.search(queue.logs()), queue.logs)
    say(f"{JOB} was started again by Slurm: {line_of(queue, 'resuming from')}")
    subprocess.run(["scontrol", "requeue", queue.ids[JOB]], env=environment, check=True)
    wait_until(lambda: queue.show(JOB).get("Restarts") == "2", queue.logs)
    say(f"{JOB} was taken away: {line_of(queue, 'REQUEUE')}")
    queue.wait()
    say(f"the queue is empty; last start: {line_of(queue, 'resuming from')}")


def compare(ours: Path, theirs: Path) -> None:
    """Compare every artifact's digest, and every evaluation's metrics without times."""
    ours_of, theirs_of = Run(ours, "", "").artifacts(), Run(theirs, "", "").artifacts()
    assert set(ours_of) == set(theirs_of), set(ours_of) ^ set(theirs_of)
    first, second = digests(ours), digests(theirs)
    for name in ours_of:
        equal = first[name] == second[name] and metrics_of(ours_of[name]) == metrics_of(theirs_of[name])
        files = len(read_record(ours_of[name])["files"])
        say(f"{'same' if equal else 'DIFFERS'}  {name}: {files} files, {first[name][:16]}")
        if not equal:
            sys.exit(1)
    say(f"{len(ours_of)} artifacts, all the same")


def metrics_of(artifact: Path) -> dict[str, object]:
    """Return an evaluation's metrics by file, without what holds times."""
    return {
        path.relative_to(artifact).as_posix(): without_times(json.loads(path.read_text()))
        for path in sorted(artifact.rglob("*.json"))
        if path.name == "final_result.json" or path.name.endswith("_metrics.json")
    }


def without_times(value: object) -> object:
    """Return a JSON value without the keys that hold times."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if not TIMES.search(key)}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def line_of(queue: Queue, text: str) -> str:
    """Return the last line of the logs that holds `text`."""
    return [line.strip() for line in queue.logs(whole=True).splitlines() if text in line][-1]


def say(text: str) -> None:
    """Print a line with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
