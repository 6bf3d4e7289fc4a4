"""Runs a stage in several processes, of one machine or several: `run_in_processes` starts torchrun, which runs this
module in each.

The job and the outcome pass through two small files, so that an error keeps its message, its exit code, and its
traceback where it is a bug.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ladle.artifacts.files import pretty_json, write_text_durably
from ladle.artifacts.launcher import end_at_once, pass_on, torchrun_command
from ladle.artifacts.torchrun import STOP_SIGNALS
from ladle.config import Config
from ladle.errors import CheckFailed, LadleError, Preempted, UserError
from ladle.stage import Inputs, StageResult, find_stage

JOB = ".job.json"
OUTCOME = ".outcome.json"
_FORESEEN = {kind.__name__: kind for kind in (UserError, CheckFailed, Preempted)}


def run_in_processes(stage: str, config: Config, inputs: Inputs, out: Path, processes: int) -> StageResult:
    """Run `ladle.stages.<stage>` in `processes` processes that know of each other, and return the first one's result.

    `processes` are those of one machine; a job of several nodes runs as many on each (`ladle.artifacts.launcher`).
    SIGTERM and SIGUSR1 are passed on to the processes.

    Raises:
        UserError, CheckFailed, Preempted: what the stage raised.
    """
    kind = type(config)
    job = {
        "stage": stage,
        "config_class": f"{kind.__module__}:{kind.__qualname__}",
        "config": config.model_dump(mode="json"),
        "inputs": {role: [str(path) for path in paths] for role, paths in inputs.items()},
        "out": str(out),
    }
    (out / JOB).write_text(pretty_json(job), encoding="utf-8")
    (out / OUTCOME).unlink(missing_ok=True)
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    # DDP is asked to look for unused parameters (training/hf_arguments.py), and warns in every run where it finds none
    environment = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ
    command = [*torchrun_command(processes), "-m", "ladle.artifacts.worker", str(out / JOB)]
    process = subprocess.Popen(command, env=environment)
    asked: list[int] = []

    def stop(number: int, _: Any) -> None:
        asked.append(number)
        pass_on(number, process)

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if process.poll() is None:
            end_at_once(process)
    return _read_outcome(out, stage, code, was_asked=bool(asked))


def _read_outcome(out: Path, stage: str, code: int, was_asked: bool) -> StageResult:
    path = out / OUTCOME
    outcome = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in (JOB, OUTCOME):
        (out / name).unlink(missing_ok=True)
    if "error" in outcome:
        raise _FORESEEN[outcome["error"]](*outcome["arguments"])
    if was_asked and "result" not in outcome:
        raise Preempted(f"{stage} was asked to stop and ended; run the same command again to go on")
    if code != 0 or "result" not in outcome:
        raise CheckFailed(
            f"a process of {stage} died (exit code {code}); its messages are above. Run the same command again to go on"
        )
    return StageResult(**outcome["result"])


def work(job_path: Path) -> int:
    """Run the job in this process and, on the first one, write its outcome; returns the exit code."""
    from ladle import log

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # torchrun ignores them; a training listens once it has begun
    is_first = os.environ.get("RANK", "0") == "0"
    log.configure(quiet=not is_first)
    job = json.loads(job_path.read_text(encoding="utf-8"))
    module, _, name = job["config_class"].partition(":")
    config = getattr(importlib.import_module(module), name).model_validate(job["config"])
    inputs = {role: [Path(path) for path in paths] for role, paths in job["inputs"].items()}
    try:
        outcome, code = {"result": asdict(find_stage(job["stage"]).run(config, inputs, Path(job["out"])))}, 0
    except LadleError as error:
        outcome, code = {"error": type(error).__name__, "arguments": list(error.args)}, error.exit_code
    if is_first or "error" in outcome:
        write_text_durably(job_path.parent / OUTCOME, pretty_json(outcome))
    return code


if __name__ == "__main__":
    exit_code = work(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: torch's communication threads can abort a process whose work is done while the interpreter is
    # taken down ("terminate called without an active exception"), and torchrun then stops the others half-way.
    os._exit(exit_code)
