"""record.json: what an artifact is, what it was made from, and every file it holds; and verifying all of that.

A record is written last and carries its own hash, so that a folder with a valid record is a whole artifact, and any
change to either is seen. `digest` covers the files' content alone, without the volatile ones: equal results have equal
digests.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ladle.artifacts.files import canonical_json, hash_bytes, hash_file, list_files, pretty_json
from ladle.artifacts.step import Step
from ladle.errors import UserError
from ladle.stage import StageResult

RECORD_NAME = "record.json"
UNFINISHED_NAME = ".unfinished.json"
"""What a build leaves of its step, name and identity, until it ends."""
RECORD_FORMAT = 1
_VECTOR_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
_PACKAGES = (
    *("ladle", "torch", "transformers", "tokenizers", "datasets"),
    *("accelerate", "safetensors", "numpy", "math-verify"),
)


def describe_files(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return size in bytes and blake3 of each file below `folder` (record.json left out), by relative path.

    `known` has the hashes that a stage took of the bytes while it wrote them. They are better than hashes of what reads
    back, which would make a disk's mistake part of the record.
    """
    files = {path.relative_to(folder).as_posix(): path for path in list_files(folder) if path != folder / RECORD_NAME}
    return {
        name: {"size_bytes": path.stat().st_size, "blake3": (known or {}).get(name) or hash_file(path)}
        for name, path in files.items()
    }


def digest_of(files: dict[str, dict[str, Any]], volatile: tuple[str, ...]) -> str:
    """Return the blake3 over the sorted (path, blake3) of the files that equal results share.

    `*` in a pattern of volatile files matches `/` too.
    """
    stable = [
        (name, entry["blake3"])
        for name, entry in sorted(files.items())
        if not any(fnmatch(name, pattern) for pattern in volatile)
    ]
    return hash_bytes(canonical_json(stable).encode())


def make_record(
    step: Step, folder: Path, inputs: dict[str, list[dict[str, Any]]], result: StageResult, seconds: float
) -> dict[str, Any]:
    """Describe a finished artifact; the result holds only JSON values."""
    files = describe_files(folder, result.output_hashes)
    record = {
        "format": RECORD_FORMAT,
        "name": step.name,
        "stage": step.stage.name,
        "fingerprint": step.fingerprint,
        "identity": step.identity,
        "config": step.config.model_dump(mode="json"),
        "inputs": inputs,
        "environment": describe_environment(),
        "files": files,
        "volatile": list(step.stage.volatile),
        "digest": digest_of(files, step.stage.volatile),
        "counters": dict(result.counters),
        "metrics": dict(result.metrics),
        "warnings": list(result.warnings),
        "timings": {"seconds": round(seconds, 3), **result.timings},
        "command": sys.argv,
    }
    return seal(record)


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with the hash of everything else in it."""
    body = {key: value for key, value in record.items() if key != "record_blake3"}
    return body | {"record_blake3": hash_bytes(canonical_json(body).encode())}


def read_record(folder: Path) -> dict[str, Any]:
    """Return an artifact's record.

    Raises:
        UserError: the folder holds no readable record.json.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise _not_an_artifact(folder)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problem = f"{path} is damaged ({error})"
        raise UserError(problem, f"run `ladle verify {folder}`, or remove the folder and build it again") from error


def _not_an_artifact(folder: Path) -> UserError:
    """Return the error that a folder has no record; if it holds artifacts, with the newest of them."""
    inside = list(_records_below(folder))
    if inside:
        newest = max(inside, key=lambda path: path.stat().st_mtime).parent
        problem = f"{folder} is not an artifact, but holds {len(inside)} of them"
        return UserError(problem, f"name one, such as the newest, {newest}")
    seen = f"{folder} is not an artifact (it has no {RECORD_NAME})"
    problem = seen if folder.exists() else f"there is no artifact at {folder}"
    return UserError(problem, "name a folder that a ladle stage made, or RECIPE:STEP")


def _records_below(folder: Path) -> Iterator[Path]:
    """Yield the records of the artifacts in a folder of them: a stage's, a run's, or one of runs."""
    for depth in ("*", "*/*", "*/*/*"):
        yield from folder.glob(f"{depth}/{RECORD_NAME}")


def is_complete(folder: Path, fingerprint: str) -> bool:
    """Tell whether `folder` holds the finished artifact of that fingerprint, every file there in its recorded size."""
    if not (folder / RECORD_NAME).is_file():
        return False
    record = read_record(folder)
    files = ((folder / name, entry["size_bytes"]) for name, entry in record["files"].items())
    return record["fingerprint"] == fingerprint and all(
        path.is_file() and path.stat().st_size == size for path, size in files
    )


def describe_environment() -> dict[str, Any]:
    """Return the versions and the machine facts that a result may depend on."""
    found = {package: next(iter(distributions(name=package)), None) for package in _PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        **_hardware(),
        "commit": _commit(),
        "blas": _blas(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "packages": {package: one.version if one else "not installed" for package, one in found.items()},
    }


@cache
def _hardware() -> dict[str, Any]:
    """Return the CPU's model and vector instructions, and the GPUs and their driver, by what Linux says of them."""
    cpu, gpus = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    said: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        said.setdefault(name.strip().lower(), value.strip())
    flags = {*said.get("flags", said.get("features", "")).split()}
    models = [re.findall(r"Model:\s*(.+)", file.read_text()) for file in sorted(gpus.glob("gpus/*/information"))]
    driver = gpus / "version"
    return {
        "cpu": said.get("model name", platform.processor()),
        "vector_instructions": [name for name in _VECTOR_INSTRUCTIONS if name in flags],
        "gpus": [name for found in models for name in found],
        "gpu_driver": driver.read_text().splitlines()[0] if driver.is_file() else None,
    }


@cache
def _commit() -> str | None:
    """Return the commit of the checkout that Ladle runs from, `-dirty` with changes; None where it is installed."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _blas() -> str | None:
    """Return the library of torch's matrix products, where torch is loaded."""
    torch = sys.modules.get("torch")
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show()) if torch is not None else None
    return found[1] if found else None


def verify(folder: Path) -> Iterator[str]:
    """Yield one line for each fault in the artifact or, walking its inputs to the roots, in what it was made from.

    Raises:
        UserError: `folder` does not exist or was never an artifact.
    """
    was_one = (folder / RECORD_NAME).exists() or (folder.is_dir() and any(folder.iterdir()))
    if not was_one or any(_records_below(folder)):
        raise _not_an_artifact(folder)
    yield from _verify_once(folder.resolve(), set())


def _verify_once(folder: Path, seen: set[Path]) -> Iterator[str]:
    if folder in seen:
        return
    seen.add(folder)
    path = folder / RECORD_NAME
    if path.is_symlink() or not path.is_file():
        yield f"missing: {path}"
        return
    record = _read_intact(folder)
    if record is None:
        yield f"changed: {path}"
        return
    present = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
    present.pop(RECORD_NAME, None)
    for name, entry in record["files"].items():
        path = present.get(name)
        if path is None:
            yield f"missing: {folder / name}"
        elif path.is_symlink() or path.stat().st_size != entry["size_bytes"] or hash_file(path) != entry["blake3"]:
            yield f"changed: {path}"
    for name in sorted(present.keys() - record["files"].keys()):
        yield f"extra: {present[name]}"
    if record["digest"] != digest_of(record["files"], tuple(record["volatile"])):
        yield f"changed: {folder / RECORD_NAME} (its digest is not that of its files)"
    for item in (item for items in record["inputs"].values() for item in items):
        yield from _verify_input(folder, item, seen)


def _verify_input(folder: Path, item: dict[str, Any], seen: set[Path]) -> Iterator[str]:
    for entry in item.get("files", []):
        path = Path(entry["path"])
        if not path.is_file():
            yield f"missing: {path} (input of {folder})"
        elif hash_file(path) != entry["blake3"]:
            yield f"changed: {path} (input of {folder})"
    if "artifact" in item:
        parent = (folder.parent / item["artifact"]).resolve()
        yield from _verify_once(parent, seen)
        record = _read_intact(parent)
        if record and (record["fingerprint"], record["digest"]) != (item["fingerprint"], item["digest"]):
            yield f"changed: {parent} (no longer the artifact that {folder} was made from)"


def _read_intact(folder: Path) -> dict[str, Any] | None:
    """Return the record if it is, byte for byte, what was written and sealed."""
    try:
        text = (folder / RECORD_NAME).read_bytes().decode()
        record = json.loads(text)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and text == pretty_json(record) and record == seal(record) else None
