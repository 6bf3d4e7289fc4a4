"""A finished training taken further: the bytes of one that was that long from the start, and what it changes said."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import ladle
from ladle.api import Artifact
from ladle.errors import UserError
from tests.distributed.pretrain_job import make_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def write_recipe(folder: Path) -> Path:
    job = make_job(folder, "deepseek_v3")
    trainer = job.config.trainer.values() | {"lr_scheduler_type": "constant", "save_steps": 4}
    data = str(job.inputs["mixture"][0])
    recipe = {"name": "longer", "base": {"model": str(job.inputs["model"][0])}, "pretrain": {"data": data}}
    recipe["pretrain"]["trainer"] = trainer
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(recipe: Path, name: str, steps: int, **overrides: object) -> Artifact:
    values = {f"pretrain.{key}": value for key, value in overrides.items()} | {"pretrain.trainer.max_steps": steps}
    return ladle.open(recipe, values, recipe.parent / name).build("pretrain")


def test_it_ends_as_one_that_was_longer_from_the_start(tmp_path, caplog):
    recipe = write_recipe(tmp_path)
    whole = train(recipe, "whole", 14)
    first = train(recipe, "first", 10, keep_training_state=True)
    assert [path.name for path in (first.path / "training_state").iterdir()] == ["checkpoint-10"]
    assert first.record["digest"] == train(recipe, "plain", 10).record["digest"], "what is kept is not in the digest"
    with caplog.at_level("INFO", logger="ladle"):
        longer = train(recipe, "longer", 14, extends=str(first.path))
    assert longer.record["counters"]["resumed_from_step"] == 10
    assert longer.record["metrics"]["extends"] == {"trainer.max_steps": "10 → 14"}
    assert "trainer.max_steps 10 → 14" in caplog.text
    assert "the schedule is constant over 14 steps, not 10: the learning rate was 0.001 and is 0.001" in caplog.text
    for name in ("model/model.safetensors", "training_log.jsonl", "checkpoints/checkpoint-12/model.safetensors"):
        assert (longer.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert longer.record["metrics"]["optimizer_digest"] == whole.record["metrics"]["optimizer_digest"]


def test_it_is_refused_without_its_training_state_or_with_other_rows_or_no_more_steps(tmp_path):
    recipe = write_recipe(tmp_path)
    plain = train(recipe, "plain", 4)
    with pytest.raises(UserError, match="has no training state.*pretrain.keep_training_state=true"):
        train(recipe, "longer", 8, extends=str(plain.path))
    first = train(recipe, "first", 4, keep_training_state=True)
    with pytest.raises(UserError, match="has 4 steps already, of 4: raise trainer.max_steps"):
        train(recipe, "longer", 4, extends=str(first.path))
    with pytest.raises(UserError, match="a place in other data: its rows_per_step is 4, here it is 12"):
        train(recipe, "longer", 8, extends=str(first.path), **{"trainer.gradient_accumulation_steps": 6})
