"""Running one step in a process of its own and watching it: time, peak memory of all its processes, GPUs' too."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ladle.training.before import SMALL_CACHES

POLL_SECONDS = 0.2
STOP_POLL_SECONDS = 0.005
GPU_POLL_SECONDS = 2.0
"""nvidia-smi takes about a tenth of a second."""


@dataclass(frozen=True)
class Watched:
    """What one run of a command took."""

    code: int
    seconds: float
    peak_bytes: int
    """The most that its processes held at once, resident; pages they share are counted once a process."""
    gpu_peak_bytes: int
    """The most that its processes held of GPUs at once, as nvidia-smi says; 0 without."""


def watch(command: list[str], log: Path, stop: Callable[[], bool] = lambda: False) -> Watched:
    """Run a command to its end, or until `stop` says so: then all its processes are killed with SIGKILL.

    Args:
        command: what to run.
        log: where its output goes.
        stop: called every few milliseconds.
    """
    started = looked = time.monotonic()
    peak, gpu_peak = 0, 0
    look_at_gpus = started if shutil.which("nvidia-smi") else math.inf
    with log.open("w", encoding="utf-8") as stream:
        environment = SMALL_CACHES | os.environ
        process = psutil.Popen(command, stderr=stream, stdout=stream, env=environment, start_new_session=True)
        while process.poll() is None:
            if stop():
                for one in [*reversed(process.children(recursive=True)), process]:
                    one.kill()
                process.wait()
                break
            if time.monotonic() - looked >= POLL_SECONDS:
                looked = time.monotonic()
                peak = max(peak, sum(map(_resident_bytes, [process, *process.children(recursive=True)])))
                if looked >= look_at_gpus:
                    gpu_peak = max(gpu_peak, _gpu_bytes([process, *process.children(recursive=True)]))
                    look_at_gpus = looked + GPU_POLL_SECONDS
            time.sleep(STOP_POLL_SECONDS)
    return Watched(process.returncode, time.monotonic() - started, peak, gpu_peak)


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:  # ended meanwhile
        return 0


def _gpu_bytes(processes: list[psutil.Process]) -> int:
    """Return what these processes hold of all GPUs, as nvidia-smi says; in a container it may know them by others."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1]
    known = {str(process.pid) for process in processes}
    mebibytes = [used for pid, used in rows if pid.strip() in known and used.strip().isdecimal()]
    return sum(map(int, mebibytes)) * 2**20
