"""What a rehearsal makes small and what it keeps; the rehearsal itself is run by tests/pipeline."""

from __future__ import annotations

import pytest
import yaml

from ladle.recipe import load_recipe
from ladle.rehearsal.shrink import Shrunk


def shrunk(repository, recipe: str, gpus: int) -> Shrunk:
    tree = yaml.safe_load((repository / f"recipes/{recipe}.yaml").read_text())
    return Shrunk(tree, gpus, lambda key, source, tokens: f"{key}.jsonl")


def test_shape_dtype_and_rows_stay_and_amounts_shrink(repository):
    full = yaml.safe_load((repository / "recipes/openseek/rehearsal.yaml").read_text())
    small = shrunk(repository, "openseek/rehearsal", 8).tree
    assert small["base"] == full["base"]
    assert small["mix"]["sequence_length"] == 4096
    assert small["pretrain"]["dtype"] == "bfloat16"
    assert small["pretrain"]["processes"] == 8
    assert small["kto"]["distributed"] == "zero2"
    assert small["pretrain"]["trainer"]["per_device_train_batch_size"] == 8
    assert small["pretrain"]["trainer"]["max_steps"] == 2
    assert small["mix"]["budget"]["sequences"] == 2 * 8 * 8 + 2
    assert small["rollout"]["prompts"]["limit"] == small["evaluate"]["limit"] == 2
    assert small["evaluate"]["sampling"]["max_new_tokens"] == small["rollout"]["max_new_tokens"] == 16
    assert small["name"] == "openseek-rehearsal-rehearsal"
    assert shrunk(repository, "openseek/rehearsal", 8).changes == []


def test_what_one_machine_cannot_try_is_said(repository):
    changes = "\n".join(shrunk(repository, "openseek/rehearsal", 0).changes)
    assert "pretrain: 1 row(s) a microbatch instead of 8, on a CPU" in changes
    assert "kto: 2 row(s) a microbatch instead of 8, on a CPU" in changes
    assert "pretrain: 1 process(es) instead of 8" in changes
    assert "kto: one process, so the optimizer is not split (zero2)" in changes


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("recipe", ["pretrain", "kto", "kto-rollouts", "rehearsal", "soup", "evaluate"])
def test_a_small_recipe_is_a_recipe(repository, tmp_path, recipe, gpus):
    small = tmp_path / "recipe.yaml"
    small.write_text(yaml.safe_dump(shrunk(repository, f"openseek/{recipe}", gpus).tree))
    overrides = ["data_root=data"] if recipe == "rehearsal" else []
    assert load_recipe(small, overrides).name.endswith("-rehearsal")
