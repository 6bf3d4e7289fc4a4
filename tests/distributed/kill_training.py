"""kill -9 real training processes over and over, and compare what comes out with an uninterrupted run.

    python -m tests.distributed.kill_training --shape deepseek_v3 --processes 2 --kills 100 --seed 1

An uninterrupted run says when each step and the whole ended. Then a run is started, killed at a moment drawn uniformly
from that time, started again, … four times before it may end; then another run is, until enough kills were made. One
kill in five waits for the next save to be under way. Each start must resume from the newest valid checkpoint, and each
end must equal the uninterrupted run: final weights, model copies, log, optimizer.

Training processes are forked from this one, which has torch loaded already, so that a start costs a second and not ten.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import mmap
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ladle import log
from ladle.artifacts.record import describe_files, digest_of
from ladle.training.checkpoint import STAGING, newest_resumable, step_of
from ladle.training.loop import Training
from ladle.training.run import FINISHED
from tests.distributed.kto_job import make_kto_job
from tests.distributed.pretrain_job import SAVE_EVERY, STEPS, Job, make_job
from tests.distributed.sft_job import make_sft_job

KILLS_PER_RUN = 4
ONE_IN_SAVES = 5
LONGEST_GRACE_SECONDS = 0.5


class Clock:
    """When the first process of a training reached each step, in shared memory; the monotonic clock is one for all."""

    def __init__(self) -> None:
        self.reached = np.frombuffer(mmap.mmap(-1, 8 * (STEPS + 1)))

    def watch(self) -> None:
        """Note the steps that trainers of this process end, and the one that they begin at."""
        take_step = Training._take_step

        def take(training: Training, number: int, rows: Any) -> bool:
            self._note(number - 1)
            stops = take_step(training, number, rows)
            self._note(number)
            return stops

        Training._take_step = take

    def _note(self, step: int) -> None:
        if self.reached[step] == 0:
            self.reached[step] = time.monotonic()

    def time_of(self, step: int) -> float:
        """Return when training reached a step, or the later one that it resumed from; 0 if it has not yet."""
        later = self.reached[step:]
        return float(later[later > 0].min(initial=np.inf)) if later.any() else 0.0


@dataclass(frozen=True, order=True)
class Moment:
    """A moment of a training: so many seconds after a step, or after the beginning of the save that follows it."""

    step: int
    seconds: float
    is_in_save: bool = False


@dataclass(frozen=True)
class Ending:
    """What an uninterrupted training leaves."""

    digest: str
    optimizer_digest: str


@dataclass(frozen=True)
class Reference:
    """An uninterrupted training: what it leaves, and seconds from its first step to the end of each and of it all."""

    ending: Ending
    times: tuple[float, ...]

    def draw(self, rng: random.Random) -> Moment:
        """Return a moment that is uniform over the training's time, or one time in five in the save next to it."""
        at = rng.uniform(0.0, self.times[-1])
        step = max(step for step, time_of_step in enumerate(self.times[:-1]) if time_of_step <= at)
        if rng.randrange(ONE_IN_SAVES) == 0:
            next_save = min(STEPS, max(1, -(-step // SAVE_EVERY)) * SAVE_EVERY)
            return Moment(next_save, rng.uniform(0.0, self._save_seconds()), is_in_save=True)
        return Moment(step, at - self.times[step])

    def share_of_time(self, moment: Moment) -> float:
        """Return where in the training's time a moment lies, from 0 to 1."""
        return (self.times[moment.step] + moment.seconds) / self.times[-1]

    def _save_seconds(self) -> float:
        between = np.diff(self.times[:-1])
        saving = np.arange(STEPS) % SAVE_EVERY == 0
        saving[0] = False
        return max(0.01, float(np.median(between[saving]) - np.median(between[~saving])))


def start(job: Job, out: Path, clock: Clock) -> list[int]:
    """Fork the training's processes and return their ids, rank 0 first."""
    out.mkdir(exist_ok=True)
    out.with_suffix(".log").unlink(missing_ok=True)
    clock.reached[:] = 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_fork(job, out, clock, rank, port) for rank in range(job.config.processes)]


def _fork(job: Job, out: Path, clock: Clock, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    if rank == 0:
        logging.getLogger("ladle").addHandler(logging.FileHandler(out.with_suffix(".log")))
        logging.getLogger("ladle").setLevel(logging.INFO)
        clock.watch()
    processes = job.config.processes
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        summary = importlib.import_module(f"ladle.stages.{job.stage}").run(job.config, job.inputs, out)
        if rank == 0:
            (out / "summary.json").write_text(json.dumps(asdict(summary)))
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pids: list[int], seconds: float) -> list[int | None]:
    """Return each process's exit code, None for one that is still running after `seconds`."""
    codes: dict[int, int | None] = dict.fromkeys(pids)
    until = time.monotonic() + seconds
    while True:
        for pid in [pid for pid, code in codes.items() if code is None]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if None not in codes.values() or time.monotonic() >= until:
            break
        time.sleep(0.002)
    return list(codes.values())


def kill_all(pids: list[int], victim: int, grace_seconds: float) -> None:
    """Kill one process at once and, as torchrun does, the others after a while; collect them all."""
    os.kill(pids[victim], signal.SIGKILL)
    for pid, code in zip(pids, wait(pids, grace_seconds), strict=True):
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run_whole(job: Job, out: Path) -> Reference:
    """Run the training to its end, undisturbed."""
    clock = Clock()
    codes = wait(start(job, out, clock), 600)
    ended = time.monotonic()
    if any(code != 0 for code in codes):
        raise AssertionError(f"training ended with {codes}")
    times = [*clock.reached.tolist(), ended]
    return Reference(describe(out), tuple(time - times[0] for time in times))


def describe(out: Path) -> Ending:
    """Return the digest of all files that a training leaves, and of its optimizer."""
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    files = describe_files(out)
    return Ending(digest_of(files, ("summary.json", "checkpoints/runs/*")), summary["metrics"]["optimizer_digest"])


class Run:
    """One training that is started again after each kill.

    Args:
        job: what to train.
        out: where.
        rng: draws victims and moments.

    Attributes:
        expected: the checkpoint that the next start must resume from; None if there is none.
    """

    def __init__(self, job: Job, out: Path, rng: random.Random) -> None:
        self.job, self.out, self.rng = job, out, rng
        self.folder, self.clock = out / "checkpoints", Clock()
        self.expected: Path | None = None

    def is_finished(self) -> bool:
        """Return whether training has ended and its model is saved."""
        return (self.out / FINISHED).is_file()

    def start_and_kill(self, moment: Moment) -> dict[str, Any] | None:
        """Start the training, kill one process at a moment, and check what is left.

        Returns what was met; None if the training ended first.
        """
        pids = start(self.job, self.out, self.clock)
        self._wait_for(lambda: self.clock.time_of(moment.step) > 0, pids)
        begun = self.clock.time_of(moment.step)
        if moment.is_in_save:
            self._wait_for(self._is_saving, pids)
            begun = time.monotonic()
        time.sleep(max(0.0, begun + moment.seconds - time.monotonic()))
        victim, grace = self.rng.randrange(len(pids)), self.rng.choice([0.0, LONGEST_GRACE_SECONDS])
        if not all(_is_running(pid) for pid in pids):
            assert wait(pids, 60) == [0] * len(pids), self._log()
            self._require_resumed()
            self._note_checkpoint()
            return None
        was_saving = self._is_saving()
        kill_all(pids, victim, grace)
        self._require_resumed()
        self._note_checkpoint()
        return {"victim": victim, "was_saving": was_saving}

    def finish(self) -> Ending:
        """Let the training end, and describe what it left."""
        codes = wait(start(self.job, self.out, self.clock), 600)
        assert all(code == 0 for code in codes), self._log()
        self._require_resumed()
        return describe(self.out)

    def _is_saving(self) -> bool:
        staging = self.folder / STAGING
        try:
            return any(staging.iterdir())
        except FileNotFoundError:  # not there yet, or sealed meanwhile
            return False

    def _note_checkpoint(self) -> None:
        """Look for the checkpoint to resume from, which is never older than the last one."""
        newest = newest_resumable(self.folder) if self.folder.is_dir() else None
        if self.expected is not None and not self.is_finished():
            assert newest is not None, f"{self.expected} was lost"
            assert step_of(newest) >= step_of(self.expected), f"{self.expected} was lost"
        self.expected = None if self.is_finished() else newest

    def _require_resumed(self) -> None:
        """Check that the start that ended resumed from the checkpoint it had to, where there was one."""
        if self.expected is not None:
            assert f"resuming from {self.expected.name}\n" in self._log(), self._log()

    def _log(self) -> str:
        return self.out.with_suffix(".log").read_text()

    def _wait_for(self, condition: Callable[[], bool], pids: list[int], seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until and all(_is_running(pid) for pid in pids):
            time.sleep(0.001)


def _is_running(pid: int) -> bool:
    """Return whether a child has not ended yet, without collecting it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


class Tally:
    """What all kills met.

    A kill counts once the next start was seen to resume from a checkpoint; those before the first checkpoint and after
    the training's end, where there is nothing to resume from, are counted apart.
    """

    def __init__(self, processes: int) -> None:
        self.seen: dict[str, Any] = {
            "kills": 0,
            "by_rank": [0] * processes,
            "in_saves": 0,
            "by_tenth_of_time": [0] * 10,
            "before_first_checkpoint": 0,
            "after_the_end": 0,
            "endings": 0,
        }

    def count(self, met: dict[str, Any], share_of_time: float, run: Run) -> None:
        """Take in a kill at a share of the training's time."""
        if run.is_finished():
            self.seen["after_the_end"] += 1
        elif run.expected is None:
            self.seen["before_first_checkpoint"] += 1
        else:
            self.seen["kills"] += 1
            self.seen["by_rank"][met["victim"]] += 1
            self.seen["in_saves"] += met["was_saving"]
            self.seen["by_tenth_of_time"][min(9, int(share_of_time * 10))] += 1


def run(
    shape: str,
    processes: int,
    kills: int,
    seed: int,
    dtype: str = "float32",
    distributed: str = "ddp",
    stage: str = "pretrain",
    save_in_background: bool = False,
) -> dict[str, Any]:
    """Make `kills` kills and return what was seen.

    Raises:
        AssertionError: an end that differs from the uninterrupted one, a lost checkpoint, or a start that did not
            resume from the newest.
    """
    rng, tally = random.Random(seed), Tally(processes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make = {"pretrain": make_job, "sft": make_sft_job, "kto": make_kto_job}[stage]
        job = make(folder, shape, processes, dtype, distributed)
        job = replace(job, config=job.config.model_copy(update={"save_in_background": save_in_background}))
        reference = run_whole(job, folder / "uninterrupted")
        while tally.seen["kills"] < kills:
            one = Run(job, folder / f"run-{tally.seen['endings']}", rng)
            _kill_often(one, reference, tally, kills)
            ending = one.finish()
            whole, found = describe_files(folder / "uninterrupted"), describe_files(one.out)
            differing = sorted(name for name in whole.keys() | found if whole.get(name) != found.get(name))
            assert ending == reference.ending, f"{one.out.name} of seed {seed}: {differing}; {tally.seen}"
            tally.seen["endings"] += 1
    asked = {"stage": stage, "shape": shape, "processes": processes, "dtype": dtype, "distributed": distributed}
    return asked | {"seed": seed} | tally.seen | {"seconds_of_a_run": round(reference.times[-1], 2)}


def _kill_often(one: Run, reference: Reference, tally: Tally, kills: int) -> None:
    """Kill a run at moments drawn uniformly, in their order, so that it gets to each."""
    for moment in sorted(reference.draw(one.rng) for _ in range(KILLS_PER_RUN)):
        met = one.start_and_kill(moment)
        if met is None:
            return
        tally.count(met, reference.share_of_time(moment), one)
        if tally.seen["kills"] >= kills:
            return


def run_apart(
    shape: str,
    processes: int,
    kills: int,
    seed: int,
    dtype: str = "float32",
    distributed: str = "ddp",
    stage: str = "pretrain",
    save_in_background: bool = False,
) -> dict[str, Any]:
    """Do `run` in a fresh process of one thread: forking is only safe while torch has started none.

    Raises:
        AssertionError: it failed; the message holds its output.
    """
    command = [sys.executable, "-m", "tests.distributed.kill_training", "--shape", shape, "--dtype", dtype]
    command += ["--processes", str(processes), "--kills", str(kills), "--seed", str(seed)]
    command += ["--distributed", distributed, "--stage", stage, *["--save_in_background"] * save_in_background]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"{shlex.join(command)}\n" + done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Read the command line, run, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="deepseek_v3")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--distributed", default="ddp")
    parser.add_argument("--stage", default="pretrain")
    parser.add_argument("--save_in_background", action="store_true")
    arguments = parser.parse_args()
    log.configure(quiet=True)
    logging.getLogger("ladle").handlers.clear()
    sys.stdout.write(json.dumps(run(**vars(arguments))) + "\n")


if __name__ == "__main__":
    main()
