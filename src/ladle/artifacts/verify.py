"""Re-hash an artifact and everything it was made from; name each file that changed, is missing, or does not belong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladle.artifacts.files import hash_file, list_files
from ladle.artifacts.record import RECORD_NAME, digest_of, is_intact
from ladle.errors import UserError


def verify(folder: Path) -> Iterator[str]:
    """Yield one line for each fault in the artifact or, walking its inputs to the roots, in what it was made from.

    Raises:
        UserError: `folder` does not exist or was never an artifact.
    """
    if not (folder / RECORD_NAME).exists() and not (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"there is no artifact at {folder}", "name a folder that a ladle stage made")
    yield from _verify_once(folder.resolve(), set())


def _verify_once(folder: Path, seen: set[Path]) -> Iterator[str]:
    if folder in seen:
        return
    seen.add(folder)
    path = folder / RECORD_NAME
    if path.is_symlink() or not path.is_file():
        yield f"missing: {path}"
        return
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if not is_intact(text):
        yield f"changed: {path}"
        return
    record = json.loads(text)
    yield from _verify_files(folder, record)
    for items in record["inputs"].values():
        for item in items:
            yield from _verify_input(folder, item, seen)


def _verify_files(folder: Path, record: dict[str, Any]) -> Iterator[str]:
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
        if (parent / RECORD_NAME).is_file() and not _still_is(parent, item["fingerprint"], item["digest"]):
            yield f"changed: {parent} (no longer the artifact that {folder} was made from)"


def _still_is(folder: Path, fingerprint: str, digest: str) -> bool:
    try:
        record = json.loads((folder / RECORD_NAME).read_bytes())
    except ValueError:
        return False
    return (record.get("fingerprint"), record.get("digest")) == (fingerprint, digest)
