"""The promise of 64 MiB: anonymous memory of a whole process that makes a soup, watched from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ladle.soups.members import make_header

from .formats import to_bits
from .models import write_member

LIMIT_MIB = 64
SCRIPT = """
import sys
from pathlib import Path
from ladle.soups.config import SoupConfig
from ladle.stages.soup import run
*members, out = map(Path, sys.argv[1:])
run(SoupConfig(), {"members": members}, out)
assert "torch" not in sys.modules
"""


def peak_rss_anon_mib(command: list[str]) -> float:
    process = subprocess.Popen(command)
    peak = 0.0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            break
        found = [int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")]
        peak = max([peak, *found])
        time.sleep(0.005)
    assert process.wait() == 0
    return peak


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["BF16", "F64"])
def test_memory_stays_below_the_promise_whatever_the_size(tmp_path: Path, dtype: str) -> None:
    numbers = to_bits(np.random.default_rng(0).normal(0, 0.02, 2**12), dtype)
    repeats = 16 * 2**20 // numbers.nbytes  # 16 MiB a member, so that eight of them are twice the promise
    members = []
    for number in range(8):
        folder = write_member(tmp_path / f"m{number}", {})
        shape = (numbers.size * repeats,)
        header = make_header({"weight": (dtype, shape, numbers.nbytes * repeats)}, {"format": "pt"})
        (folder / "model.safetensors").write_bytes(header.raw + numbers.tobytes() * repeats)
        members.append(str(folder))
    (tmp_path / "out").mkdir()
    peak = peak_rss_anon_mib([sys.executable, "-c", SCRIPT, *members, str(tmp_path / "out")])
    assert 5 < peak <= LIMIT_MIB
