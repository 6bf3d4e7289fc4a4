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
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
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


def test_worked_examples_are_an_input_of_rollouts_and_gates(tmp_path):
    shown = {"few_shot": 1, "examples": {"dataset": "problems", "split": "examples", "answer": "solution"}}
    kto = {"data": ["rollouts"], "gate": GATE | shown}
    steps = pipeline(tmp_path, kto, rollout={"prompts": PROBLEMS, **shown}).steps
    assert source_of(steps["rollout"], "examples") == source_of(steps["kto"], "examples") == "datasets/problems"


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
    assert [name for name in steps if name.startswith("rollout")] == ["rollout/round-2"]  # nothing takes earlier ones
    assert source_of(steps["rollout/round-2"], "model") == "kto/training-1"
    assert source_of(steps["kto"], "model") == "kto/training-1"
    assert all(section.trainer.values()["seed"] == 233 for section in built.recipe.kto)  # type: ignore[union-attr]


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


def test_rollouts_that_nothing_takes_are_those_of_the_model_before_alignment(tmp_path):
    given = {"dataset": "problems", "format": "template", "label": True}
    for kto in (None, {"data": [given], "allow_single_label": True}):
        steps = pipeline(tmp_path, kto).steps
        assert source_of(steps["rollout"], "model") == "base"


def test_right_attempts_alone_need_no_kto(tmp_path):
    steps = pipeline(tmp_path, None, sft={"data": ["rollouts"]}).steps
    assert source_of(steps["sft/prefer"], "source:0") == "rollout"
    assert source_of(steps["rollout"], "model") == source_of(steps["sft"], "model") == "base"


def test_kto_on_the_sft_model_has_rollouts_of_its_own(tmp_path):
    steps = pipeline(tmp_path, {"data": ["rollouts"]}, sft={"data": ["rollouts"]}).steps
    assert source_of(steps["rollout"], "model") == source_of(steps["sft"], "model") == "base"
    assert source_of(steps["rollout/kto"], "model") == source_of(steps["kto"], "model") == "sft"
    assert source_of(steps["prefer"], "source:0") == "rollout/kto"


ARMS = {"plain": None, "nll": {"nll_weight": 0.1, "trainer": {"learning_rate": 1e-4}}, "short": {"max_length": 64}}


def test_arms_share_rollouts_data_and_reference_where_they_are_the_same(tmp_path):
    trainer = {"learning_rate": 2e-5, "num_train_epochs": 2}
    kto = {"data": ["rollouts"], "trainer": trainer, "arms": ARMS}
    evaluate = {"models": ["kto/plain", "kto/nll"], "benchmarks": [{"name": "problems", "dataset": "problems"}]}
    built = pipeline(tmp_path, kto, ["kto.arms.plain.beta=0.3"], evaluate=evaluate)
    steps = built.steps
    assert [name for name in steps if name.startswith(("rollout", "prefer", "kto"))] == [
        *("rollout", "prefer", "kto/reference-1", "kto/plain", "kto/nll", "kto/short/reference-1", "kto/short"),
    ]
    assert {source_of(steps[f"kto/{name}"], "model") for name in ARMS} == {"base"}
    assert source_of(steps["kto/nll"], "reference") == "kto/reference-1"
    settings = {name: steps[f"kto/{name}"].config for name in ARMS}
    assert settings["plain"].beta == 0.3  # type: ignore[attr-defined]
    assert settings["nll"].nll_weight == 0.1  # type: ignore[attr-defined]
    assert settings["nll"].trainer.get("learning_rate") == 1e-4  # type: ignore[attr-defined]
    assert settings["short"].trainer.get("learning_rate") == 2e-5  # type: ignore[attr-defined]
    for config in settings.values():
        values = config.trainer.values()  # type: ignore[attr-defined]
        assert (values["num_train_epochs"], values["seed"]) == (2, 233)
    assert source_of(steps["evaluate/nll"], "model") == "kto/nll"


def test_arms_go_their_own_ways_after_the_first_round_and_share_the_alignments_before_them(tmp_path):
    first = {"data": ["rollouts"], "beta": 0.3}
    arms = {"low": {"beta": 0.2}, "high": {}}
    steps = pipeline(tmp_path, [first, {"data": ["rollouts"], "gate": GATE, "rounds": 2, "arms": arms}]).steps
    assert [name for name in steps if name.startswith("rollout")] == [
        "rollout", "rollout/low/round-2", "rollout/low/round-3", "rollout/high/round-3",
    ]  # fmt: skip
    for arm in arms:
        assert steps[f"kto/{arm}"].stage.name == "gate"
        assert source_of(steps[f"kto/{arm}/training-2"], "model") == "kto/low/training-1"
        assert source_of(steps[f"rollout/{arm}/round-3"], "model") == f"kto/{arm}/gate-2"
        assert source_of(steps[f"kto/{arm}"], "candidate") == f"kto/{arm}/training-3"


def test_arms_may_differ_in_their_data_and_then_each_needs_some(tmp_path):
    given = {"dataset": "problems", "format": "template", "label": True}
    arms = {"own": {"data": ["rollouts"]}, "given": {"data": [given], "allow_single_label": True}}
    steps = pipeline(tmp_path, {"arms": arms}).steps
    assert source_of(steps["prefer"], "source:0") == "rollout"
    assert source_of(steps["prefer/given"], "source:0") == "datasets/problems"
    with pytest.raises(UserError, match="kto.arms.bare.data is missing"):
        pipeline(tmp_path, {"arms": arms | {"bare": {}}})


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": {"bta": 1}}, r"unknown key 'kto.arms.a.bta'.*did you mean 'beta'\? \(.*recipe.yaml:\d+"),
        ({"a": {"beta": -1}}, r"kto.arms.a.beta: -1.*greater than 0"),
        ({"a": {"arms": {}}}, "unknown key 'kto.arms.a.arms'"),
        ({"a/b": {}}, "kto.arms.a/b"),
        (
            {"reference-1": {}},
            "two steps are called kto/reference-1: give what kto.arms.reference-1 names another name",
        ),
    ],
)
def test_a_fault_of_an_arm_is_named_by_its_place(tmp_path, arms, message):
    with pytest.raises(UserError, match=message):
        pipeline(tmp_path, {"data": ["rollouts"], "arms": arms})


def test_a_fault_of_the_section_is_not_laid_to_its_arms(tmp_path):
    with pytest.raises(UserError, match="unknown key 'kto.bta'"):
        pipeline(tmp_path, {"data": ["rollouts"], "bta": 1, "arms": ARMS})
    with pytest.raises(UserError, match=r"kto.0 has arms, and an alignment after it"):
        pipeline(tmp_path, [{"data": ["rollouts"], "arms": ARMS}, {"data": ["rollouts"]}])


def test_several_evaluations_have_names_and_settings_of_their_own(tmp_path):
    benchmark = {"name": "problems", "dataset": "problems"}
    sampled = {"models": ["base", "kto"], "benchmarks": [benchmark]}
    greedy = {"name": "greedy", "models": ["kto"], "benchmarks": [benchmark], "sampling": {"temperature": 0}}
    steps = pipeline(tmp_path, {"data": ["rollouts"]}, ["evaluate.greedy.limit=7"], evaluate=[sampled, greedy]).steps
    found = {name: step.config for name, step in steps.items() if step.stage.name == "evaluate"}
    assert list(found) == ["evaluate/base", "evaluate/kto", "evaluate/greedy/kto"]
    settings = [(config.sampling.temperature, config.limit) for config in found.values()]  # type: ignore[attr-defined]
    assert settings == [(0.6, None), (0.6, None), (0, 7)]
    for name, message in ((None, "have no name"), ("greedy", "are called greedy")):
        other = sampled | {"name": name, "models": ["base"]}  # its steps have other names
        with pytest.raises(UserError, match=f"several evaluations {message}"):
            pipeline(tmp_path, {"data": ["rollouts"]}, evaluate=[other, greedy | {"name": name}])
    with pytest.raises(UserError, match=r"evaluate.1.sampling.top_p: 2"):
        pipeline(tmp_path, {"data": ["rollouts"]}, evaluate=[sampled, greedy | {"sampling": {"top_p": 2}}])


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
