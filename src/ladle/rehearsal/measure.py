"""Running one step in a process of its own and watching it: time, peak memory of all its processes, GPUs' too."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.2
STOP_POLL_SECONDS = 0.005
GPU_POLL_SECONDS = 2.0
"""nvidia-smi takes about a tenth of a second."""
UNFRAGMENTED = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""Keeps freed blocks out of glibc's heap, which otherwise takes up to a third more (benchmarks/memory_estimate.py)."""


@dataclass(frozen=True)
class Watched:
    """What one run of a command took."""

    code: int
    seconds: float
    peak_bytes: int
    """The most that its processes held at once, resident; pages they share are counted once a process."""
    gpu_peak_bytes: int
    """The most that its processes held of GPUs at once, as nvidia-smi tells; 0 without."""
    lines: tuple[tuple[float, str], ...]
    """What it wrote to standard error, each line with the seconds since the start."""


def watch(command: list[str], log: Path, stop: Callable[[], bool] | None = None) -> Watched:
    """Run a command to its end, or until `stop` says so: then all its processes are killed with SIGKILL.

    Args:
        command: what to run.
        log: where its standard error goes.
        stop: asked every few milliseconds.
    """
    started = time.monotonic()
    peak, seen, lines = 0, 0, []
    gpu_peak, look_at_gpus = 0, started if shutil.which("nvidia-smi") else math.inf
    with log.open("w", encoding="utf-8") as stream:
        environment = UNFRAGMENTED | os.environ
        process = subprocess.Popen(command, stderr=stream, stdout=stream, env=environment, start_new_session=True)
        while process.poll() is None:
            peak = max(peak, sum(map(_resident_bytes, _tree(process.pid))))
            if time.monotonic() >= look_at_gpus:
                gpu_peak = max(gpu_peak, _gpu_bytes(_tree(process.pid)))
                look_at_gpus = time.monotonic() + GPU_POLL_SECONDS
            text = log.read_text(encoding="utf-8", errors="replace")
            fresh, seen = text[seen:], len(text)
            lines += [(time.monotonic() - started, line) for line in fresh.splitlines()]
            if _is_to_be_stopped(process, stop):
                for pid in reversed(_tree(process.pid)):
                    _kill(pid)
                process.wait()
                break
    return Watched(process.returncode, time.monotonic() - started, peak, gpu_peak, tuple(lines))


def _is_to_be_stopped(process: subprocess.Popen[bytes], stop: Callable[[], bool] | None) -> bool:
    """Wait until the next look at the process, and tell whether it is to be stopped."""
    if stop is None:
        time.sleep(POLL_SECONDS)
        return False
    until = time.monotonic() + POLL_SECONDS
    while time.monotonic() < until and process.poll() is None:
        if stop():
            return True
        time.sleep(STOP_POLL_SECONDS)
    return False


def _tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:
                continue  # ended meanwhile
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _gpu_bytes(pids: list[int]) -> int:
    """Return what these processes hold of all GPUs, as nvidia-smi tells; in a container it may know them by others."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1]
    known = {str(pid) for pid in pids}
    mebibytes = [used for pid, used in rows if pid.strip() in known and used.strip().isdecimal()]
    return sum(map(int, mebibytes)) * 2**20


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
