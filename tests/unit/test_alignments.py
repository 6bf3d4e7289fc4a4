"""How `kto:` becomes steps: rounds, gates, a curriculum, and the problems that each round takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ladle.artifacts.inputs import InputFinder
from ladle.artifacts.step import Step, StepOutput
from ladle.errors import UserError
from ladle.pipeline import Pipeline
from ladle.recipe import load_recipe

PROBLEMS = {"dataset": "problems", "split": "prompts", "limit": 30}
GATE = {"prompts": {"dataset": "problems", "split": "validation"}}


def pipeline(folder: Path, kto: Any, overrides: list[str] | None = None, **sections: Any) -> Pipeline:
    recipe = {
        "name": "t",
        "datasets": {"problems": {"kind": "word_problems"}},
        "base": {
            "init": {"architecture": {"model_type": "qwen3"}, "tokenizer": {"dataset": "problems", "text": "text"}}
        },
        "rollout": {"prompts": PROBLEMS, "samples": 2},
        "kto": kto,
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return Pipeline(load_recipe(path, overrides or ()), InputFinder(folder))


def source_of(step: Step, role: str) -> str:
    item = step.inputs[role][0]
    assert isinstance(item, StepOutput)
    return item.step.name


def test_one_round_is_rollout_data_reference_and_training(tmp_path):
    steps = pipeline(tmp_path, {"data": ["rollouts"]}).steps
    assert [name for name in steps if name.startswith(("rollout", "prefer", "kto"))] == [
        "rollout", "prefer", "kto/reference-1", "kto",
    ]  # fmt: skip
    assert steps["kto"].stage.name == "kto"


def test_each_round_starts_from_what_the_gate_before_it_kept_with_problems_of_its_own(tmp_path):
    steps = pipeline(tmp_path, {"data": ["rollouts"], "rounds": 3, "gate": GATE}).steps
    assert [steps[name].config.prompts.first for name in ("rollout", "rollout/round-2", "rollout/round-3")] == [
        0,
        30,
        60,
    ]  # type: ignore[attr-defined]
    assert source_of(steps["rollout/round-2"], "model") == "kto/gate-1"
    assert source_of(steps["kto/training-2"], "model") == "kto/gate-1"
    assert source_of(steps["kto/gate-2"], "parent") == "kto/gate-1"
    assert source_of(steps["kto/gate-2"], "candidate") == "kto/training-2"
    assert (steps["kto"].stage.name, source_of(steps["kto"], "candidate")) == ("gate", "kto/training-3")


def test_a_gate_may_stand_after_several_rounds_and_compares_with_what_the_last_one_kept(tmp_path):
    steps = pipeline(tmp_path, {"data": ["rollouts"], "rounds": 5, "gate": {**GATE, "every": 2}}).steps
    gates = {name: step for name, step in steps.items() if step.stage.name == "gate"}
    assert {name: (source_of(step, "parent"), source_of(step, "candidate")) for name, step in gates.items()} == {
        "kto/gate-2": ("base", "kto/training-2"),
        "kto/gate-4": ("kto/gate-2", "kto/training-4"),
        "kto": ("kto/gate-4", "kto/training-5"),
    }
    assert source_of(steps["kto/training-2"], "model") == "kto/training-1"
    assert source_of(steps["rollout/round-3"], "model") == "kto/gate-2"


def test_a_list_is_a_curriculum(tmp_path):
    given = {"dataset": "problems", "format": "template", "completion": "{solution}", "label": True}
    kto = [{"data": [given], "beta": 0.3, "allow_single_label": True}, {"data": ["rollouts"]}]
    built = pipeline(tmp_path, kto, ["kto.1.beta=0.2"])
    steps = built.steps
    assert steps["kto/training-1"].config.beta == 0.3  # type: ignore[attr-defined]
    assert steps["kto"].config.beta == 0.2  # type: ignore[attr-defined]
    assert source_of(steps["rollout/round-2"], "model") == "kto/training-1"
    assert source_of(steps["kto"], "model") == "kto/training-1"
    assert all(section.trainer.values()["seed"] == 233 for section in built.recipe.alignments)


def test_right_attempts_alone_and_kto_take_the_same_rollouts_from_the_same_model(tmp_path):
    sft = {"model": "base", "data": ["rollouts"]}
    evaluate = {
        "models": ["base", {"model": "sft", "name": "rft"}, "kto"],
        "benchmarks": [{"name": "problems", "dataset": "problems"}],
    }
    steps = pipeline(tmp_path, {"model": "base", "data": ["rollouts"]}, sft=sft, evaluate=evaluate).steps
    assert [name for name in steps if name.startswith("rollout")] == ["rollout"]
    assert source_of(steps["sft/prefer"], "source:0") == source_of(steps["prefer"], "source:0") == "rollout"
    assert source_of(steps["sft"], "model") == source_of(steps["kto"], "model") == "base"
    assert source_of(steps["evaluate/rft"], "model") == "sft"
    assert source_of(steps["evaluate/kto"], "model") == "kto"


@pytest.mark.parametrize(
    ("kto", "message"),
    [
        ({"data": ["rollouts"], "rounds": 2}, "nothing says whether a round made the model worse"),
        ({"data": ["problems"], "rounds": 2, "gate": GATE}, "kto.data takes no rollouts"),
    ],
)
def test_rounds_that_cannot_be_are_refused(tmp_path, kto, message):
    with pytest.raises(UserError, match=message):
        pipeline(tmp_path, kto)


def test_the_reference_pass_depends_on_data_and_pairs_and_not_on_the_training(tmp_path):
    def fingerprint(*overrides: str) -> str:
        steps = pipeline(tmp_path, {"data": ["rollouts"]}, [*overrides]).steps
        return steps["kto/reference-1"].fingerprint

    same = ["kto.beta=0.3", "kto.trainer.learning_rate=1e-3", "kto.kl_scope=microbatch", "kto.desirable_weight=auto"]
    other = [
        "kto.pairs=fixed",
        "kto.seed=9",
        "kto.max_length=99",
        "kto.trainer.num_train_epochs=9",
        "kto.kl_scope=none",
    ]
    assert {fingerprint(override) for override in same} == {fingerprint()}
    assert len({fingerprint(override) for override in other} | {fingerprint()}) == len(other) + 1
