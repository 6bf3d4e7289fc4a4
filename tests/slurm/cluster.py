"""A real Slurm on this machine, for tests: one controller and two nodes of it, everything in one folder.

Debian: apt-get install slurm-wlm munge. Needs root, as munged and slurmd do.

    python -m tests.slurm.cluster FOLDER        starts it and prints the SLURM_CONF to export; Ctrl-C ends it
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "runuser")
NODES = ("node-a", "node-b")
CONFIG = """
ClusterName=ladle-test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
AuthType=auth/munge
# a requeued job starts again once its credential has expired: 2 minutes by default
AuthInfo=socket={folder}/munge/socket,cred_expire=6
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=60
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def why_absent() -> str:
    """Return why there can be no Slurm here, or nothing."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "munged and slurmd need root"


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run the cluster in `folder`, which other users may enter, and yield the environment for its commands."""
    daemons: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    try:
        daemons.append(_start_munge(folder))
        _configure(folder)
        daemons.append(subprocess.Popen(["slurmctld", "-D", "-c"], env=environment, stderr=subprocess.DEVNULL))
        for node in NODES:
            command = ["slurmd", "-D", "-N", node]
            daemons.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        _wait_for_nodes(environment)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)


def _start_munge(folder: Path) -> subprocess.Popen[bytes]:
    place = folder / "munge"
    place.mkdir()
    (place / "key").write_bytes(os.urandom(1024))
    (place / "key").chmod(0o400)
    for path in (place / "key", place):
        shutil.chown(path, "munge", "munge")
    place.chmod(0o755)
    files = {name: f"{place}/{name}" for name in ("key", "socket", "pid", "log", "seed")}
    options = [f"--{'key' if name == 'key' else name}-file={path}" for name, path in files.items() if name != "socket"]
    command = ["runuser", "-u", "munge", "--", "munged", "--foreground", "--force", f"--socket={files['socket']}"]
    return subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)


def _configure(folder: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    host = socket.gethostname()
    ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} Port={port} CPUs=2 RealMemory=4000"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    text = CONFIG.format(host=host, ports=ports, folder=folder, nodes=nodes)
    (folder / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for_nodes(environment: dict[str, str]) -> None:
    for _ in range(240):
        done = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=environment, capture_output=True, text=True)
        if done.stdout.split() == ["idle"] * len(NODES):
            return
        time.sleep(0.25)
    raise RuntimeError(f"the nodes did not come up: {done.stdout} {done.stderr}")


if __name__ == "__main__":
    with slurm(Path(sys.argv[1])) as running:
        sys.stdout.write(f"export SLURM_CONF={running['SLURM_CONF']}\n")
        sys.stdout.flush()
        signal.pause()
