"""How the processes of one stage are started and signalled: by torchrun here, or on every node of a Slurm job.

A job script that spans nodes says so by three variables, and runs the command itself on its first node:

    LADLE_NODES        nodes of the job; unset is this machine alone
    LADLE_RENDEZVOUS   host:port where they meet, on the first node
    LADLE_JOB_ID       what tells this meeting from others
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NODES = "LADLE_NODES"
RENDEZVOUS = "LADLE_RENDEZVOUS"
JOB_ID = "LADLE_JOB_ID"


def torchrun_command(processes: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the command that starts `processes` processes a node, short of the module they run."""
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


def needs_torchrun(processes: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a stage runs in more than one process in all."""
    return processes > 1 or int(environment.get(NODES, "1")) > 1


def pass_on(number: int, process: subprocess.Popen[bytes]) -> None:
    """Send a signal to the processes that `torchrun_command` started.

    srun sends it to every process of the job step; of torchrun's children each is one process of the group.
    """
    if Path(str(process.args[0])).name == "srun":  # type: ignore[index]
        process.send_signal(number)
        return
    for child in _children(process.pid):
        os.kill(child, number)


def end_at_once(process: subprocess.Popen[bytes]) -> None:
    """End torchrun, which then ends its processes; killing it would orphan them."""
    process.send_signal(signal.SIGINT)
    process.wait()


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]
