"""A tiny saved model and a small custom benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ladle.models.load import save_model
from tests.tiny_models import make_model, make_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(make_model("qwen3", max_position_embeddings=8192), make_tokenizer(), folder)
    return folder


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"{a} plus {a + 1}?", "answer": 2 * a + 1, "level": a % 3} for a in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
