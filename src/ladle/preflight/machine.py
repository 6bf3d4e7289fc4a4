"""What this machine has, found without importing torch: GPUs by nvidia-smi, memory by /proc, torch by its files."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from ladle.checkup import Gpu, Machine

QUERY = "index,name,memory.total,compute_cap,driver_version"
NVIDIA_SMI_TIMEOUT_SECONDS = 30

KNOWN_PACKAGES = (
    "bitsandbytes", "deepspeed", "fastokens", "flash_attn", "flash_attn_interface", "liger_kernel", "peft", "ray",
    "triton", "vllm",
)  # fmt: skip
"""Packages that some settings need, looked for by the names they are imported under."""
BFLOAT16_FLAGS = frozenset(["avx512_bf16", "amx_bf16", "bf16"])
"""Flags of /proc/cpuinfo: two of x86, one of Arm."""


def look_at_machine() -> Machine:
    """Return what this machine has."""
    version, cuda = torch_build()
    return Machine(
        gpus=gpus_of_machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=available_memory(),
        torch=version,
        cuda=cuda,
        packages=frozenset(name for name in KNOWN_PACKAGES if importlib.util.find_spec(name) is not None),
        multiplies_bfloat16=_cpu_multiplies_bfloat16(),
    )


def gpus_of_machine() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, or none where there is no working nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = [_parse(line) for line in done.stdout.splitlines() if line.count(",") == 4] if done.returncode == 0 else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not all(part.strip().isdecimal() for part in visible.split(",") if part.strip()):
        return tuple(found) if visible != "" else ()
    wanted = {int(part) for part in visible.split(",") if part.strip()}
    return tuple(gpu for gpu in found if gpu.index in wanted)


def _parse(line: str) -> Gpu:
    index, name, memory, capability, driver = (part.strip() for part in line.split(","))
    major, _, minor = capability.partition(".")
    return Gpu(int(index), name, int(memory) * 2**20, (int(major), int(minor)), driver)


def available_memory() -> int:
    """Return the bytes of main memory that a new process could take: MemAvailable, or what a cgroup leaves."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - int(used.read_text()))
    return available


def _cpu_multiplies_bfloat16() -> bool:
    """Return whether the CPU lists such instructions, or lists none at all."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), None)
    return flags is None or not BFLOAT16_FLAGS.isdisjoint(flags.split())


def torch_build() -> tuple[str | None, str | None]:
    """Return the version of the installed torch and the CUDA version it was built for, read from its version file."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(__version__|cuda)\b[^=\n]*= *'([^']*)'", text, re.MULTILINE))
    return found.get("__version__"), found.get("cuda")
