"""Nine families through the whole pipeline, one for each way in which models are handled; `make sweep` runs all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .sweep import FAMILIES, Outcome, page

EXPECTED = {
    "llama": "works",
    "qwen3_moe": "works",
    "deepseek_v3": "works",
    "ernie4_5_moe": "works",  # the routers' biases are matrices of one row
    "gpt2": "works",  # positions that are learned, dropout, tied embeddings
    "opt": "works with one document a row",  # dropout in functions, positions by a mask
    "gemma2": "works with eager attention",  # soft caps, windows in every other layer
    "qwen3_next": "works with one document a row",  # a state beside the attention's
    "phimoe": "works",  # noise in the routers, a window that is in the mask alone, a head with a bias
}


@pytest.fixture(scope="module")
def outcomes(repository: Path) -> dict[str, Outcome]:
    command = [sys.executable, "-m", "tests.families.sweep", *EXPECTED]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=settings)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return {one.family: one for one in (Outcome(**json.loads(line)) for line in lines)}


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_goes_through_the_whole_pipeline(outcomes: dict[str, Outcome], family: str) -> None:
    assert outcomes[family].words().startswith(EXPECTED[family]), outcomes[family]


def test_the_page_has_a_row_for_each_family(repository: Path) -> None:
    rows = (repository / "docs" / "models.md").read_text().splitlines()
    families = [row.split("|")[1].strip() for row in rows if row.startswith("| ") and not row.startswith("| family")]
    assert families == sorted(FAMILIES)
    assert len(families) >= 45


def test_the_page_says_how_a_family_works_or_why_not() -> None:
    several = [
        Outcome("a"),
        Outcome("b", ["eager attention"], {"KTO": "x|y"}),
        Outcome("c", refusals={"model": "why"}),
        Outcome("d", refusals={"KTO": "why"}, faults=["a loss", "exit code 1: Traceback\nKeyError: 3"]),
    ]
    assert page(several).splitlines()[-4:] == [
        "| a | works |",
        "| b | works with eager attention; KTO refused: x/y |",
        "| c | model refused: why |",
        "| d | fails: a loss; KeyError: 3 |",
    ]
