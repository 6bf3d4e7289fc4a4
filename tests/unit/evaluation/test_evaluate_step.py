"""What `ladle evaluate` makes of its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ladle.api import Run
from ladle.artifacts.inputs import HubRepository, LocalFiles
from ladle.artifacts.step import Step, StepOutput
from ladle.errors import UserError
from ladle.recipe import make_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def evaluate_step(settings: dict[str, Any], overrides: list[str], root: Path) -> Step:
    return Run(make_recipe({"evaluate": settings}, overrides, "evaluate"), root, "evaluate/model").steps[
        "evaluate/model"
    ]


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return str(tmp_path / "model")


def settings(model: str, problems: Path, revision: str | None = None) -> dict[str, Any]:
    return {"models": [{"model": model, "name": "model", "revision": revision}], "benchmarks": [str(problems)]}


def test_a_folder_is_read_where_it_is_and_a_file_is_a_benchmark(model, problems, tmp_path):
    step = evaluate_step(settings(model, problems) | {"limit": 3}, ["sampling.max_new_tokens=8"], tmp_path)
    assert set(step.inputs) == {"model", "benchmark:problems"}
    assert all(isinstance(items[0], LocalFiles) for items in step.inputs.values())
    assert (step.config.limit, step.config.sampling.max_new_tokens) == (3, 8)


def test_a_model_of_the_hub_is_imported_first(problems, tmp_path):
    step = evaluate_step(settings("org/name", problems, COMMIT), [], tmp_path)
    (found,) = step.inputs["model"]
    assert isinstance(found, StepOutput)
    assert found.step.stage.name == "fetch"
    assert found.step.inputs["model"] == (HubRepository("model", "org/name", COMMIT, revision=COMMIT),)


def test_examples_are_an_input(model, problems, tmp_path):
    step = evaluate_step(settings(model, problems), ["few_shot=1", f"examples.dataset={problems}"], tmp_path)
    assert isinstance(step.inputs["examples"][0], LocalFiles)
    with pytest.raises(UserError, match="no examples"):
        evaluate_step(settings(model, problems), ["few_shot=1"], tmp_path)
