"""Running a stage in several processes, of one machine or of several nodes.

`run_in_processes` starts torchrun, which runs this module in each process. The job and the outcome pass through two
small files of pickles, so that an error keeps its type and message, and, if it is a bug, its traceback is shown.

A Slurm script that spans nodes runs the command itself on its first node, and sets three variables:

    LADLE_NODES        nodes of the job; unset is this machine alone
    LADLE_RENDEZVOUS   host:port where they meet, on the first node
    LADLE_JOB_ID       distinguishes this meeting from others
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from subprocess import PIPE
from typing import Any

from ladle.artifacts.files import replace_durably
from ladle.artifacts.torchrun import STOP_SIGNALS
from ladle.config import Config
from ladle.errors import CheckFailed, LadleError, Preempted
from ladle.log import IS_SHOWN
from ladle.stage import Inputs, StageResult, find_stage, run_stage

NODES = "LADLE_NODES"
RENDEZVOUS = "LADLE_RENDEZVOUS"
JOB_ID = "LADLE_JOB_ID"

JOB = ".job.pickle"
OUTCOME = ".outcome.pickle"


def torchrun_command(processes: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the command that starts `processes` processes a node, without the module they run."""
    nodes = int(environment.get(NODES, "1"))
    torchrun = [sys.executable, "-m", "ladle.artifacts.torchrun"]
    if nodes == 1:
        return [*torchrun, "--standalone", f"--nproc_per_node={processes}"]
    meeting = [
        f"--nnodes={nodes}",
        f"--nproc_per_node={processes}",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint={environment[RENDEZVOUS]}",
        f"--rdzv_id={environment.get(JOB_ID, 'ladle')}",
    ]
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    return [*srun, *torchrun, *meeting]


def leave_launcher() -> None:
    """Under `accelerate launch` or torchrun, let the first process go on as if it were alone, and end the others.

    Ladle starts a training's processes itself, as many as its recipe sets, when it comes to the training.
    """
    if "RANK" not in os.environ:
        return
    if os.environ["RANK"] != "0":
        sys.exit(0)
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    for name in list(os.environ):
        if name in names or name.startswith(("ACCELERATE_", "FSDP_", "TORCHELASTIC_")):
            del os.environ[name]


def needs_torchrun(processes: int) -> bool:
    """Return whether a stage runs in more than one process in all."""
    return processes > 1 or int(os.environ.get(NODES, "1")) > 1


def run_in_processes(stage: str, config: Config, inputs: Inputs, out: Path, processes: int) -> StageResult:
    """Run a stage in `processes` processes that know of each other, and return the first one's result.

    `processes` are those of one machine; a job of several nodes runs as many on each. SIGTERM and SIGUSR1 are passed
    on to the processes.

    Raises:
        LadleError: what the stage raised.
        CheckFailed: a process died.
        Preempted: a signal stopped it.
    """
    (out / JOB).write_bytes(pickle.dumps((stage, config, inputs, out)))
    (out / OUTCOME).unlink(missing_ok=True)
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    # DDP looks for unused parameters (its setting in ladle.training), and warns in every run where it finds none
    environment = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ
    command = [*torchrun_command(processes), "-m", "ladle.artifacts.worker", str(out / JOB)]
    # below a live display, what they say goes through it
    process = subprocess.Popen(command, env=environment, stderr=PIPE if IS_SHOWN in os.environ else None, text=True)
    if process.stderr is not None:
        threading.Thread(target=sys.stderr.writelines, args=(process.stderr,), daemon=True).start()
    signalled: list[int] = []

    def stop(number: int, _: Any) -> None:
        signalled.append(number)
        if command[0] == "srun":  # it passes a signal on to every process of the job step
            process.send_signal(number)
            return
        for path in Path(f"/proc/{process.pid}/task").glob("*/children"):  # each is one process of the group
            for child in path.read_text().split():
                os.kill(int(child), number)

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # torchrun then ends its processes; killing it would orphan them
            process.wait()
    outcome = pickle.loads((out / OUTCOME).read_bytes()) if (out / OUTCOME).is_file() else None
    for name in (JOB, OUTCOME):
        (out / name).unlink(missing_ok=True)
    if isinstance(outcome, LadleError):
        raise outcome
    if outcome and code == 0:
        return outcome
    if signalled and not outcome:
        raise Preempted(f"{stage} got a signal to stop, and stopped; run the same command again to resume")
    raise CheckFailed(
        f"a process of {stage} died (exit code {code}); its messages are above. Run the same command again to resume"
    )


def work(job_path: Path) -> int:
    """Run the job in this process and, on the first one, write its outcome; returns the exit code."""
    from ladle import log

    for number in (*STOP_SIGNALS, signal.SIGINT):  # torchrun ignores some; a training listens once it has begun
        signal.signal(number, signal.SIG_DFL)
    is_first = os.environ.get("RANK", "0") == "0"
    log.configure(quiet=not is_first)
    stage, config, inputs, out = pickle.loads(job_path.read_bytes())
    try:
        outcome, code = run_stage(find_stage(stage), config, inputs, out), 0
    except LadleError as error:
        outcome, code = error, error.exit_code
    if is_first or code:
        temporary = out / f"{OUTCOME}.{os.getpid()}-{os.environ.get('RANK')}.tmp"
        temporary.write_bytes(pickle.dumps(outcome))
        replace_durably(temporary, out / OUTCOME)
    return code


if __name__ == "__main__":
    exit_code = work(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: torch's communication threads can abort a process whose work is done while the interpreter is
    # taken down ("terminate called without an active exception"), and torchrun then stops the others half-way.
    os._exit(exit_code)
