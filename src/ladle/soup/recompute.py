"""Rebuild a soup's tensors from its members and compare them with what is on disk, byte for byte."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from ladle.errors import UserError
from ladle.log import progress
from ladle.soup.config import SoupConfig
from ladle.soup.info import INFO_FILE
from ladle.soup.members import read_json
from ladle.soup.plan import BYTES, OutputFile, Run, plan_output
from ladle.soup.preflight import open_soup
from ladle.soup.stream import MIB, FileStream
from ladle.soup.weights import to_coefficients


def recompute(artifact: Path, members: Sequence[Path]) -> list[str]:
    """Average the members again as `merge_info.json` says; return the names of the tensors that come out differently.

    Args:
        artifact: a soup.
        members: the folders it was made of, in the same order; all that are recorded, also those with share 0.

    Raises:
        UserError: the folder is no soup, or the members are not as many as recorded, or do not fit together.
    """
    if not (artifact / INFO_FILE).is_file():
        raise UserError(f"{artifact} is no soup: it has no {INFO_FILE}", "name a folder that `ladle soup` made")
    info = read_json(artifact / INFO_FILE)
    if len(members) != len(info["members"]):
        raise UserError(
            f"{artifact} was made of {len(info['members'])} members, and {len(members)} are given",
            "give them all, in order",
        )
    # Order and repeats were settled when the soup was made, and are no part of its identity.
    settled = {"hash_inputs": False, "allow_order": True, "allow_repeats": True}
    config = SoupConfig(**info["config"]).model_copy(update=settled)
    coefficients = to_coefficients([Fraction(member["coefficient"]) for member in info["members"]])
    soup = open_soup(members, config)
    files = plan_output(soup.members, soup.comparison, coefficients.used)
    different: set[str] = set()
    with progress(total=sum(file.size_bytes for file in files) // MIB, description="recompute", unit="MiB") as bar:
        for file in files:
            if not _has_layout(artifact / file.name, file):
                different |= set(file.tensors)
                continue
            with _ComparingSink.open(artifact / file.name, file) as sink:
                FileStream(file, soup, coefficients, config, sink, bar).run()
            different |= sink.different
    return sorted(different)


def _has_layout(path: Path, file: OutputFile) -> bool:
    """Tell whether a file holds the tensors, at the places, that it should; otherwise none of them can be compared."""
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    with path.open("rb") as opened:
        return opened.read(len(file.header)) == file.header


class _ComparingSink:
    """Compares bytes with a file's instead of writing them."""

    def __init__(self, descriptor: int, file: OutputFile) -> None:
        self.descriptor = descriptor
        # Bytes of the file after its header, as one run.
        tensors = [(name, count * run.out_size) for run in file.runs for name, count in run.tensors]
        self.whole = Run([], len(file.header), BYTES, file.size_bytes - len(file.header), tensors)
        self.different: set[str] = set()
        self.lock = threading.Lock()

    @classmethod
    @contextmanager
    def open(cls, path: Path, file: OutputFile) -> Iterator[_ComparingSink]:
        """Yield a sink that compares with the file at `path`."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield cls(descriptor, file)
        finally:
            os.close(descriptor)

    def put(self, offset: int, data: memoryview) -> None:
        """Note the tensors in which the file differs from the bytes that belong at `offset`."""
        there = np.frombuffer(os.pread(self.descriptor, len(data), offset), np.uint8)
        places = offset - self.whole.out_offset + np.flatnonzero(there != np.frombuffer(data, np.uint8))
        if places.size:
            with self.lock:
                self.different.update(self.whole.tensors_at(places))
