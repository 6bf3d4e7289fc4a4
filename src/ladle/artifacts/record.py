"""record.json: what an artifact is, what it was made from, and every file it holds.

It is written last and carries its own hash, so that a folder with a valid record is a whole artifact, and any change
to either is seen. `digest` covers the files' content alone (volatile ones left out): equal results have equal digests.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ladle.artifacts.files import canonical_json, hash_bytes, hash_file, list_files, pretty_json
from ladle.artifacts.step import Step
from ladle.errors import UserError
from ladle.stage import StageResult

RECORD_NAME = "record.json"
RECORD_FORMAT = 1
_PACKAGES = (
    "ladle",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "safetensors",
    "numpy",
    "math-verify",
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
    """Return the blake3 over the sorted (path, blake3) of the files that equal results share."""
    stable = [(name, entry["blake3"]) for name, entry in sorted(files.items()) if not is_volatile(name, volatile)]
    return hash_bytes(canonical_json(stable).encode())


def is_volatile(name: str, volatile: tuple[str, ...]) -> bool:
    """Tell whether a file's bytes may differ between equal results; `*` in a pattern matches `/` too."""
    return any(fnmatch(name, pattern) for pattern in volatile)


def make_record(
    step: Step, folder: Path, inputs: dict[str, list[dict[str, Any]]], result: StageResult, seconds: float
) -> dict[str, Any]:
    """Describe a finished artifact; the result holds only JSON values."""
    files = describe_files(folder, result.output_hashes)
    record = {
        "format": RECORD_FORMAT,
        "name": step.name,
        "stage": step.stage,
        "fingerprint": step.fingerprint,
        "identity": step.identity,
        "config": step.config.model_dump(mode="json"),
        "inputs": inputs,
        "environment": describe_environment(),
        "files": files,
        "volatile": list(step.volatile),
        "digest": digest_of(files, step.volatile),
        "counters": dict(result.counters),
        "metrics": dict(result.metrics),
        "timings": {"seconds": round(seconds, 3), **result.timings},
        "command": sys.argv,
    }
    return seal(record)


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with the hash of everything else in it."""
    body = {key: value for key, value in record.items() if key != "record_blake3"}
    return body | {"record_blake3": hash_bytes(canonical_json(body).encode())}


def is_intact(text: str) -> bool:
    """Tell whether the text of a record.json is, byte for byte, what was written and sealed."""
    try:
        record = json.loads(text)
    except ValueError:
        return False
    return isinstance(record, dict) and text == pretty_json(record) and record == seal(record)


def read_record(folder: Path) -> dict[str, Any]:
    """Return an artifact's record.

    Raises:
        UserError: the folder holds no readable record.json.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise UserError(
            f"{folder} is not an artifact (it has no {RECORD_NAME})", "name a folder that a ladle stage made"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error})", f"run `ladle verify {folder}`, or remove the folder and build it again"
        ) from error


def is_complete(folder: Path, fingerprint: str) -> bool:
    """Tell whether `folder` holds the finished artifact of that fingerprint, every file there in its recorded size."""
    if not (folder / RECORD_NAME).is_file():
        return False
    record = read_record(folder)
    return record["fingerprint"] == fingerprint and all(
        _size_of(folder / name) == entry["size_bytes"] for name, entry in record["files"].items()
    )


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def describe_environment() -> dict[str, Any]:
    """Return the versions and the machine facts that a result may depend on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "packages": versions,
    }
