"""`verify` of a soup sees every single bit that turns, in what it was made of as in what was made."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ladle import api
from ladle.artifacts.files import list_files
from ladle.artifacts.record import verify

from .models import random_tensors, write_member

NUM_FLIPS = 1000


@pytest.mark.slow
def test_verify_names_every_file_with_a_flipped_bit(tmp_path: Path) -> None:
    folders = [tmp_path / "run" / f"checkpoint-{step}" for step in (1, 2, 3)]
    members = [write_member(folder, random_tensors(step)) for step, folder in enumerate(folders)]
    out = tmp_path / "out"
    api.soup(members, out, root=tmp_path / "root")
    assert list(verify(out)) == []
    paths = [path for folder in (*members, out) for path in list_files(folder)]
    contents = {path: path.read_bytes() for path in paths}
    drawn = random.Random(5)
    for number in range(NUM_FLIPS):
        # Each file in turn: by size, weights would take all flips.
        path = paths[number % len(paths)]
        position, flipped = drawn.randrange(8 * len(contents[path])), bytearray(contents[path])
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        faults = list(verify(out))
        assert any(str(path) in fault for fault in faults), (path, position)
        path.write_bytes(contents[path])
    assert list(verify(out)) == []
