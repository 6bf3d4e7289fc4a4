"""Fixtures that every kind of test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter of an environment with vLLM, which pins a transformers of its own (make setup-vllm)."""
    python = Path(os.environ.get("LADLE_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
    if not python.exists():
        pytest.skip(
            f"vLLM is absent (looked for {python}; `make setup-vllm` installs it, LADLE_VLLM_PYTHON names another)"
        )
    return str(python)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora, benchmarks and vocabulary, where the machine has them."""
    folder = Path(os.environ.get("LADLE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is absent (looked at {folder}; LADLE_SHARED_DATA names another place)")
    return folder
