"""Which of two models a gate keeps, and which rows a rollout leaves."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from ladle.evaluation.attempts import Prompt
from ladle.evaluation.benchmark import Item
from ladle.generation.request import Sample
from ladle.models.load import save_model
from ladle.rollouts import rollout
from ladle.rollouts.config import GateConfig, RolloutConfig
from ladle.rollouts.rollout import Attempt, corrupt_answers, read_problems
from tests.tiny_models import make_model, make_tokenizer

PROMPT = Prompt([1], "Question: x\nAnswer:")


def attempts_with(verdicts: list[str], problems: list[Item]) -> list[Attempt]:
    return [
        Attempt(problem, PROMPT, Sample("", [1], f"it is {problem.gold}", "eos"), verdict)
        for problem, verdict in zip(cycle(problems), verdicts, strict=False)
    ]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, list[Path]]:
    tokenizer = make_tokenizer()
    for name, seed in (("parent", 0), ("candidate", 1)):
        save_model(make_model("qwen3", len(tokenizer), seed=seed), tokenizer, tmp_path / name / "model")
    problems = [{"question": f"q{n}", "answer": str(n)} for n in range(4)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    paths: dict[str, list[Path]] = {name: [tmp_path / name] for name in ("parent", "candidate")}
    return paths | {"prompts": [tmp_path]}


@pytest.mark.parametrize(
    ("candidate", "significance", "kept"),
    [
        ("++++++++++++", 0.05, "candidate"),  # 6 more: p = 2 / 2**6
        ("+++++++++++-", 0.05, "parent"),  # 5 more: p = 2 / 2**5
        ("+++++++++++-", 0.1, "candidate"),
        ("++++++------", 1, "candidate"),
        ("+++++-------", 1, "parent"),
        ("------------", 0.05, "parent"),
    ],
)
def test_the_candidate_is_kept_if_it_solves_significantly_more(
    models, candidate, significance, kept, tmp_path, monkeypatch
):
    solved = {"parent": "++++++------", "candidate": candidate}

    def attempt(config: Any, problems: list[Item], model: Path, folder: Path, purpose: str) -> list[Attempt]:
        folder.mkdir()
        return attempts_with([{"+": "correct", "-": "wrong"}[sign] for sign in solved[model.parent.name]], problems)

    monkeypatch.setattr(rollout, "attempt_problems", attempt)
    out = tmp_path / "out"
    out.mkdir()
    config = {"prompts": {"dataset": "d", "split": "validation"}, "significance": significance}
    rollout.run_gate(GateConfig.model_validate(config), models, out)
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / kept / weights).read_bytes()
    assert json.loads((out / "gate.json").read_text())["kept"] == kept


def test_a_gate_really_samples_and_grades(models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    config = GateConfig.model_validate({"prompts": {"dataset": "d", "split": "validation"}, "max_new_tokens": 4})
    assert rollout.run_gate(config, models, out).counters["attempts"] == 4
    assert sorted(path.name for path in out.iterdir()) == ["gate.json", "model"]


def test_rollouts_take_the_problems_from_the_first_on_and_start_over(models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    source = {"dataset": "d", "split": "validation", "first": 2, "limit": 5}
    config = RolloutConfig.model_validate({"prompts": source, "samples": 2, "max_new_tokens": 4})
    counters = rollout.run(config, {"model": models["parent"], "prompts": models["prompts"]}, out).counters
    assert counters["samples"] == 10
    problems = read_problems(config.prompts, models["prompts"], "rollout")
    assert [problem.idx for problem in problems] == [2, 3, 4, 5, 6]
    assert [problem.gold for problem in problems] == list("23012")


def test_answers_are_corrupted_only_where_nothing_was_wrong():
    problems = [Item(n, f"q{n}", str(10 + n)) for n in range(3)]
    attempts = attempts_with(["correct", "correct", "wrong", "correct", "wrong", "wrong"], problems)
    corrupted = corrupt_answers(attempts, seed=1)
    assert [attempt.problem.idx for attempt in corrupted] == [0]
    assert corrupted[0].sample.text in ("it is 11", "it is 12")
    assert corrupted[0].sample.token_ids is None
    assert corrupt_answers(attempts, seed=1) == corrupted
