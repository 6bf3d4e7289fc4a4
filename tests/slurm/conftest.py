"""One Slurm for all tests of this folder that one process runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import slurm, why_absent


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    if why_absent():
        pytest.skip(f"no Slurm here: {why_absent()}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)
        with slurm(Path(folder)) as environment:
            yield environment | {"OMP_NUM_THREADS": "1"}
