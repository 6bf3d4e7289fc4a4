"""A Hub of our own and a way to ask it from a fresh process, since huggingface_hub reads its settings on import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Hub, serve

CALL = """
import json, sys
from ladle import hub
from ladle.errors import UserError
name, arguments = json.loads(sys.argv[1])
try:
    print(json.dumps({"value": str(getattr(hub, name)(*arguments))}))
except UserError as error:
    print(json.dumps({"problem": error.problem, "fix": error.fix, "cause": repr(error.__cause__)}))
"""


@dataclass
class Client:
    """Asks the Hub at `url`, with a cache of its own in `home`; by plain LFS, which is what the stand-in speaks."""

    url: str
    home: Path

    def environment(self, **changes: str) -> dict[str, str]:
        """Return an environment of this Hub alone: no token, no cache of the machine's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        return kept | own | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"} | changes

    def ask(self, function: str, *arguments: object, **environment: str) -> dict[str, Any]:
        """Call a function of ladle.hub and return its value, or the problem and the fix."""
        done = subprocess.run(
            [sys.executable, "-c", CALL, json.dumps([function, arguments])],
            capture_output=True,
            text=True,
            env=self.environment(**environment),
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def ladle(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        command = [sys.executable, "-m", "ladle", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment(**environment))


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Iterator[Client]:
    with serve(hub) as url:
        yield Client(url, tmp_path / "hf-home")
