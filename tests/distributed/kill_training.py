"""kill -9 real training processes over and over, and compare what comes out with an uninterrupted run.

    python -m tests.distributed.kill_training --shape deepseek_v3 --processes 2 --kills 100 --seed 1

A training of 40 steps that saves every 4 is started, killed, started again, … until it ends; then another one is, until
enough kills were made. About every fifth kill waits for a save to be under way; the others come at a random moment
soon after one of the next few saves. Each start must go on from the newest valid checkpoint, and each end must equal
the uninterrupted run: final weights, model copies, log, optimizer.

Training processes are forked from this one, which has torch loaded already, so that a start costs a second and not ten.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle import log
from ladle.artifacts.record import describe_files, digest_of
from ladle.data.config import MixConfig
from ladle.data.questions.config import WordProblemsConfig
from ladle.data.questions.word_problems import write_word_problems
from ladle.models.load import save_model
from ladle.stages import mix
from ladle.training.checkpoint import STAGING, newest_resumable, step_of
from ladle.training.config import PretrainConfig, TrainingConfig
from ladle.training.outcome import FINISHED
from tests.distributed.kto_job import make_kto_job
from tests.tiny_models import make_model, make_tokenizer

STEPS, SAVE_EVERY = 40, 4
ONE_IN_SAVES = 5


@dataclass(frozen=True)
class Job:
    """One training to repeat; `stage` is the module under `ladle.stages` that runs it."""

    config: TrainingConfig
    inputs: dict[str, list[Path]]
    stage: str = "pretrain"


@dataclass(frozen=True)
class Ending:
    """What an uninterrupted training leaves."""

    digest: str
    optimizer_digest: str


def make_job(
    folder: Path,
    shape: str,
    processes: int = 1,
    dtype: str = "float32",
    distributed: str = "ddp",
    accumulation: int = 2,
    changes: dict[str, Any] | None = None,
) -> Job:
    """Write a model (of a shape with some `changes`) and a mixture and return the training on them."""
    model, tokenizer = folder / "base", make_tokenizer()
    save_model(make_model(shape, len(tokenizer), **(changes or {})), tokenizer, model)
    problems = folder / "problems"
    write_word_problems(WordProblemsConfig(train=300, worksheets=2, prompts=2, validation=2, test=2), problems)
    source = {"name": "worked", "dataset": "problems", "split": "worked", "ratio": 1.0, "max_epochs": 50}
    mixture = folder / "mixture"
    mixture.mkdir()
    config = MixConfig.model_validate(
        {
            "sources": [source],
            "budget": {"sequences": 200},
            "sequence_length": 64,
            "validation": {"sequences": 7},
            "workers": 1,
        }
    )
    mix.run(config, {"tokenizer": [model], "source:worked": [problems]}, mixture)
    trainer = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "save_steps": SAVE_EVERY,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": 7,
        # sums of three processes' gradients round by where they stand in DDP's buckets, which must not be built anew
        "gradient_checkpointing": processes > 2,
    }
    sections = {"trainer": trainer, "dtype": dtype, "processes": processes, "distributed": distributed}
    return Job(PretrainConfig.model_validate(sections), {"model": [model], "mixture": [mixture]})


def start(job: Job, out: Path) -> list[int]:
    """Fork the training's processes and return their ids, rank 0 first."""
    out.mkdir(exist_ok=True)
    out.with_suffix(".log").unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_fork(job, out, rank, port) for rank in range(job.config.processes)]


def _fork(job: Job, out: Path, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    if rank == 0:
        logging.getLogger("ladle").addHandler(logging.FileHandler(out.with_suffix(".log")))
        logging.getLogger("ladle").setLevel(logging.INFO)
    processes = job.config.processes
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        summary = importlib.import_module(f"ladle.stages.{job.stage}").run(job.config, job.inputs, out)
        if rank == 0:
            (out / "summary.json").write_text(json.dumps(summary))
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


def kill_all(pids: list[int], codes: list[int | None]) -> None:
    """Kill what still runs, as torchrun does when one process has died, and collect it."""
    for pid, code in zip(pids, codes, strict=True):
        if code is None:
            os.kill(pid, signal.SIGKILL)  # harmless to one that was killed just now: it is not collected yet
            os.waitpid(pid, 0)


def finish(job: Job, out: Path) -> Ending:
    """Run the training to its end and describe what it left."""
    codes = wait(start(job, out), 600)
    if any(code != 0 for code in codes):
        raise AssertionError(f"training ended with {codes}")
    return describe(out)


def describe(out: Path) -> Ending:
    """Return the digest of all files that a training leaves, and of its optimizer."""
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    files = describe_files(out)
    return Ending(digest_of(files, ("summary.json", "checkpoints/runs/*")), summary["metrics"]["optimizer_digest"])


@dataclass(frozen=True)
class Kill:
    """What one kill met."""

    happened: bool
    victim: int
    was_saving: bool
    had_resumed: bool


def kill_once(job: Job, out: Path, rng: random.Random, in_save: bool) -> Kill:
    """Start the training, let it save a few times, kill a process at a random moment, and check what is left."""
    folder = out / "checkpoints"
    expected = newest_resumable(folder) if folder.is_dir() else None
    done = step_of(expected) if expected else 0
    pids = start(job, out)
    goal = folder / f"checkpoint-{done + SAVE_EVERY * rng.randint(0, 3)}"
    _wait_for(lambda: goal.is_dir() or goal.name.endswith("-0"), pids)
    if in_save:
        _wait_for((folder / STAGING).is_dir, pids)
        time.sleep(rng.uniform(0, 0.03))
    else:
        time.sleep(rng.uniform(0, 0.6))
    codes = wait(pids, 0.0)
    victim = rng.randrange(len(pids))
    was_saving = (folder / STAGING).is_dir()
    if all(code is None for code in codes):
        os.kill(pids[victim], signal.SIGKILL)
    kill_all(pids, codes)
    had_resumed = expected is not None and f"going on from {expected.name}" in out.with_suffix(".log").read_text()
    if any(code is not None for code in codes):
        return Kill(False, victim, False, had_resumed)
    if expected is not None and had_resumed and not (out / FINISHED).is_file():
        newest = newest_resumable(folder)
        assert newest is not None, f"{expected} was lost"
        assert step_of(newest) >= step_of(expected), f"{expected} was lost"
    return Kill(True, victim, was_saving, had_resumed)


def _wait_for(condition: Callable[[], bool], pids: list[int], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until and all(_is_running(pid) for pid in pids):
        time.sleep(0.001)


def _is_running(pid: int) -> bool:
    """Tell whether a child has not ended yet, without collecting it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def run(
    shape: str,
    processes: int,
    kills: int,
    seed: int,
    dtype: str = "float32",
    distributed: str = "ddp",
    stage: str = "pretrain",
) -> dict[str, Any]:
    """Make `kills` kills and return what was seen.

    Raises:
        AssertionError: an end that differs from the uninterrupted one, or a lost checkpoint.
    """
    rng = random.Random(seed)
    seen: dict[str, Any] = {
        "stage": stage,
        "shape": shape,
        "processes": processes,
        "dtype": dtype,
        "distributed": distributed,
        "seed": seed,
        "kills": 0,
        "kills_by_rank": [0] * processes,
        "in_saves": 0,
        "resumes": 0,
        "endings": 0,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make = make_kto_job if stage == "kto" else make_job
        job = make(folder, shape, processes, dtype, distributed)
        reference = finish(job, folder / "uninterrupted")
        while seen["kills"] < kills:
            out = folder / f"run-{seen['endings']}"
            while not (out / "summary.json").is_file():
                kill = kill_once(job, out, rng, in_save=rng.randrange(ONE_IN_SAVES) == 0)
                seen["kills"] += kill.happened
                seen["kills_by_rank"][kill.victim] += kill.happened
                seen["in_saves"] += kill.was_saving
                seen["resumes"] += kill.had_resumed
            ending = describe(out)
            assert (ending.digest, ending.optimizer_digest) == (reference.digest, reference.optimizer_digest), (
                f"{seen}: other bytes"
            )
            seen["endings"] += 1
    return seen


def run_apart(
    shape: str,
    processes: int,
    kills: int,
    seed: int,
    dtype: str = "float32",
    distributed: str = "ddp",
    stage: str = "pretrain",
) -> dict[str, Any]:
    """Do `run` in a fresh process of one thread: forking is only safe while torch has started none.

    Raises:
        AssertionError: it failed; the message holds its output.
    """
    command = [sys.executable, "-m", "tests.distributed.kill_training", "--shape", shape, "--dtype", dtype]
    command += ["--processes", str(processes), "--kills", str(kills), "--seed", str(seed)]
    command += ["--distributed", distributed, "--stage", stage]
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
    arguments = parser.parse_args()
    log.configure(quiet=True)
    logging.getLogger("ladle").handlers.clear()
    sys.stdout.write(json.dumps(run(**vars(arguments))) + "\n")


if __name__ == "__main__":
    main()
