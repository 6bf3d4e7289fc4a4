"""Which of two models a gate keeps, and which rows a rollout leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ladle.errors import UserError
from ladle.evaluation.benchmark import Item
from ladle.evaluation.evaluate import Prompt
from ladle.generation.request import Request, Sample
from ladle.generation.transformers_backend import TransformersGenerator
from ladle.models.load import save_model
from ladle.rollouts import rollout
from ladle.rollouts.config import GateConfig, RolloutConfig
from ladle.rollouts.rollout import Attempt, corrupt_answers, keep_mixed, read_problems
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

    def attempt(config: Any, inputs: Any, model: Path, folder: Path, purpose: str) -> tuple[list[Attempt], int]:
        folder.mkdir()
        problems = read_problems(config.prompts, inputs["prompts"], purpose)
        return attempts_with([{"+": "correct", "-": "wrong"}[sign] for sign in solved[model.parent.name]], problems), 0

    monkeypatch.setattr(rollout, "attempt_problems", attempt)
    out = tmp_path / "out"
    out.mkdir()
    config = {"prompts": {"dataset": "d", "split": "validation"}, "significance": significance}
    rollout.run_gate(GateConfig.model_validate(config), models, out)
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / kept / weights).read_bytes()
    assert json.loads((out / "gate.json").read_text())["kept"] == kept


def test_a_gate_puts_problems_to_both_models_as_the_parent_takes_them(models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "candidate" / "model" / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    config = GateConfig.model_validate({"prompts": {"dataset": "d", "split": "validation"}, "max_new_tokens": 4})
    result = rollout.run_gate(config, models, out)
    assert (result.counters["attempts"], result.metrics["prompt"]) == (4, "cot")
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


def test_rows_hold_what_was_sampled_and_how_it_ended(models, tmp_path, monkeypatch, caplog):
    tokenizer = make_tokenizer()
    eos = tokenizer.eos_token_id
    ends = {"q0": (" 0", [eos], "eos"), "q1": (" \\boxed{2} and", [], "length"), "q2": (" 2", [5], "stop")}

    def answer(self: Any, requests: list[Request]) -> Iterator[Sample]:
        for request in requests:
            question = tokenizer.decode(request.prompt_ids).split()[1]
            text, end, reason = ends.get(question, (" 3", [], "length"))
            yield Sample(request.id, [*tokenizer.encode(text, add_special_tokens=False), *end], text, reason)

    monkeypatch.setattr(TransformersGenerator, "generate", answer)
    out = tmp_path / "out"
    out.mkdir()
    config = RolloutConfig.model_validate({"prompts": {"dataset": "d", "split": "validation"}, "samples": 1})
    counters = rollout.run(config, {"model": models["parent"], "prompts": models["prompts"]}, out).counters
    # problem 3's cut " 3" is no answer: what a completion broke off in gives no label
    assert counters["cut"] == 2
    assert (counters["correct"], counters["wrong"], counters["unparsed"], counters["rows"]) == (2, 1, 1, 3)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [True, False, True]
    for row, (text, end, reason) in zip(rows, ends.values(), strict=True):
        assert row["completion"] == text
        assert row["finish_reason"] == reason
        assert row["prompt_ids"] == tokenizer.encode(row["prompt"])
        assert row["completion_ids"] == [*tokenizer.encode(text, add_special_tokens=False), *end]


def test_prompts_are_the_models_own_template_where_it_has_one_and_evaluations_otherwise(models, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "candidate" / "model")
    (tmp_path / "shown.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    inputs = {"prompts": models["prompts"], "examples": [tmp_path / "shown.jsonl"]}

    def prompts(model: str, **settings: Any) -> tuple[str, Any]:
        source = {"dataset": "d", "split": "validation", "limit": 1}
        config = RolloutConfig.model_validate({"prompts": source, "samples": 1, "max_new_tokens": 1, **settings})
        out = tmp_path / f"out-{model}-{len(settings)}"
        style = rollout.run(config, {"model": models[model], **inputs}, out).metrics["prompt"]
        task, *_ = rollout._complete(config, inputs, models[model][0] / "model", out, "rollout")
        return style, task.prompts[0].text

    assert prompts("parent") == ("cot", "Question: q0\nAnswer:")
    assert prompts("candidate") == ("chat", "<user>q0")
    assert prompts("candidate", prompt="cot") == ("cot", "Question: q0\nAnswer:")
    few = {"few_shot": 1, "examples": {"dataset": "shown", "split": "train"}}
    assert prompts("parent", **few)[1] == "Question: 1+1?\nAnswer: 2\n\n\nQuestion: q0\nAnswer:"
    chat = {"prompt": "chat", "system_prompt": "Be brief."}
    assert prompts("candidate", **few, **chat) == ("chat", "<system>Be brief.<user>1+1?<assistant>2<user>q0")


TOOLS = [{"type": "function", "function": {"name": "add"}}]
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
ASK = [{"role": "user", "content": "1+1?"}, CALL, {"role": "tool", "content": "2"}]


def test_a_conversation_reaches_the_chat_template_whole_and_stays_in_the_row(models, tmp_path, monkeypatch):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for tool in tools %}<{{ tool.function.name }}>{% endfor %}{% for m in messages %}<{{ m.role }}>"
        "{{ m.content or m.tool_calls[0].function.name }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "parent" / "model")
    monkeypatch.setattr(
        TransformersGenerator, "generate", lambda self, requests: (Sample(one.id, [5], " 2", "eos") for one in requests)
    )
    row = {"turns": ASK, "tools": TOOLS, "chat_template_kwargs": {"depth": 1}, "answer": "2"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    config = RolloutConfig.model_validate({"prompts": {"dataset": "d", "messages": "turns"}, "samples": 1})
    rollout.run(config, {"model": models["parent"], "prompts": [tmp_path / "train.jsonl"]}, out)
    (written,) = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert written["prompt"] == ASK
    assert (written["tools"], written["chat_template_kwargs"]) == (TOOLS, {"depth": 1})
    expected = "<add><user>1+1?<assistant>add<tool>2<go>"
    assert written["prompt_ids"] == tokenizer.encode(expected, add_special_tokens=False)
    assert expected == tokenizer.apply_chat_template(ASK, tools=TOOLS, add_generation_prompt=True, tokenize=False)


def test_conversations_are_whole_prompts():
    prompts = {"dataset": "d", "messages": "turns"}
    for other in (
        {"prompt": "cot"},
        {"prompt": "chat", "system_prompt": "x"},
        {"few_shot": 1, "examples": {"dataset": "e"}},
    ):
        with pytest.raises(ValidationError, match="whole conversations from column 'turns', and"):
            RolloutConfig.model_validate({"prompts": prompts, **other})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "1?", "answer": ""}], "problem 0 of d has no answer"),
        ([{"question": "1?", "answer": None}], "problem 0 of d: column 'answer' is null"),
        ([{"question": " ", "answer": "1"}], "problem 0 of d has no question"),
        ([{"question": "1?", "answer": "\\frac{"}] * 2, "2 of 2 known answers of rollout cannot be read"),
    ],
)
def test_problems_that_cannot_be_graded_are_refused_before_sampling(models, tmp_path, rows, message):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RolloutConfig.model_validate({"prompts": {"dataset": "d"}})
    with pytest.raises(UserError, match=message):
        rollout.run(config, {"model": models["parent"], "prompts": [tmp_path / "train.jsonl"]}, tmp_path)


def test_how_a_row_becomes_a_question_is_a_template():
    with pytest.raises(ValidationError, match="prompts.question is 'problem', whose braces"):
        RolloutConfig.model_validate({"prompts": {"dataset": "d", "question": "problem"}})


def test_problems_whose_answer_cannot_be_read_are_left_out_and_counted(models, tmp_path, caplog):
    rows = [{"question": f"{n}?", "answer": answer} for n, answer in enumerate(["1", "\\frac{", "2"])]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    out.mkdir()
    config = RolloutConfig.model_validate({"prompts": {"dataset": "d"}, "samples": 2, "max_new_tokens": 2})
    inputs = {"model": models["parent"], "prompts": [tmp_path / "train.jsonl"]}
    counters = rollout.run(config, inputs, out).counters
    assert (counters["samples"], counters["gold_unreadable"]) == (4, 1)
    assert "1 of 3 known answers of rollout cannot be read" in caplog.text


def test_mixed_problems_are_those_that_some_attempts_solved_and_some_did_not():
    problems = [Item(n, f"q{n}", str(10 + n)) for n in range(4)]
    verdicts = ["correct", "correct", "wrong", "wrong", "correct", "wrong", "wrong", "correct"]
    assert [one.problem.idx for one in keep_mixed(attempts_with(verdicts, problems))] == [1, 3, 1, 3]


def test_answers_are_corrupted_only_where_nothing_was_wrong():
    problems = [Item(n, f"q{n}", str(10 + n)) for n in range(3)]
    attempts = attempts_with(["correct", "correct", "wrong", "correct", "wrong", "wrong"], problems)
    corrupted = corrupt_answers(attempts, seed=1)
    assert [attempt.problem.idx for attempt in corrupted] == [0]
    assert corrupted[0].sample.text in ("it is 11", "it is 12")
    assert corrupted[0].sample.token_ids is None
    assert corrupt_answers(attempts, seed=1) == corrupted


def test_an_answer_that_is_right_all_the_same_is_not_called_a_corrupted_one():
    problems = [Item(0, "a half?", "0.5"), Item(1, "one of two?", "1/2")]
    assert corrupt_answers(attempts_with(["correct", "correct"], problems), seed=1) == []
    texts = ["\\boxed{5}, of 25", "\\boxed{7}"]  # the last 5 is in another number
    attempts = [
        Attempt(Item(n, "q", text[7]), PROMPT, Sample("", [1], text, "eos"), "correct") for n, text in enumerate(texts)
    ]
    assert [one.sample.text for one in corrupt_answers(attempts, seed=1)] == ["\\boxed{5}"]
