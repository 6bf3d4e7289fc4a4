from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from ladle.errors import UserError
from ladle.evaluation import evaluate as evaluate_module
from ladle.evaluation.config import EvaluateConfig, EvaluateModelConfig
from ladle.evaluation.rescore import rescore
from ladle.generation import transformers_backend
from ladle.generation.request import Sample
from ladle.stage import StageResult
from ladle.stages import evaluate
from tests.tiny_models import make_tokenizer


def _config(**fields: Any) -> EvaluateModelConfig:
    sampling = {"max_new_tokens": 12, "samples": 2, "batch_size": 5} | fields.pop("sampling", {})
    given = {"models": ["base"], "benchmarks": [{"name": "sums", "dataset": "x"}], "sampling": sampling} | fields
    config = EvaluateConfig.model_validate(given)
    return EvaluateModelConfig.of(config, config.models[0])


def _run(config: EvaluateModelConfig, model: Path, problems: Path, out: Path, **inputs: list[Path]) -> StageResult:
    out.mkdir(exist_ok=True)
    benchmarks = {f"benchmark:{choice.name}": [problems] for choice in config.benchmarks}
    return evaluate.run(config, {"model": [model], **benchmarks, **inputs}, out)


def _rows(out: Path, name: str = "sums") -> list[dict[str, Any]]:
    (path,) = (out / name).glob("*_result.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_and_fields(model_folder, problems, tmp_path):
    out = tmp_path / "out"
    summary = _run(_config(), model_folder, problems, out)
    run_id = "test_cot_-1_seed1_t0.6_s0_e-1"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "final_result.json",
        f"sums/{run_id}_metrics.json",
        f"sums/{run_id}_result.jsonl",
    ]
    rows = _rows(out)
    assert [row["idx"] for row in rows] == list(range(12))
    assert list(rows[0]) == [
        *("idx", "question", "gt_cot", "gt", "level", "answer"),
        *("code", "pred", "report", "score", "verdict", "method", "finish_reason", "num_tokens"),
    ]
    assert {len(row[name]) for row in rows for name in ("code", "pred", "report", "score", "verdict")} == {2}
    assert summary.metrics["sums"]["n"] == 12
    assert set(summary.metrics["sums"]) >= {"accuracy", "low", "high", "truncated", "unparsed"}


def test_metrics_and_final_result(model_folder, problems, tmp_path):
    out = tmp_path / "out"
    benchmarks = [{"name": "sums", "dataset": "x", "limit": 7, "start": 3}, {"name": "few", "dataset": "x"}]
    config = _config(benchmarks=benchmarks, limit=5, start=1)
    _run(config, model_folder, problems, out)
    assert [row["idx"] for row in _rows(out)] == [3, 4, 5, 6]
    assert (out / "sums" / "test_cot_7_seed1_t0.6_s3_e-1_metrics.json").is_file()
    metrics = json.loads((out / "few" / "test_cot_5_seed1_t0.6_s1_e-1_metrics.json").read_text())
    assert metrics["num_samples"] == 4
    assert metrics["num_scores"] == 8
    assert metrics["pass@k"]["pass@4"] == "Not enough samples (n < k)"
    assert metrics["pass@k"]["pass@2"] >= metrics["pass@k"]["pass@1"] == metrics["acc"]
    assert 0 < metrics["token_entropy"] < math.log(1000)  # tokens of the vocabulary at most
    assert sum(metrics["verdicts"].values()) == 8
    assert metrics["tokens"]["total"] == sum(n for row in _rows(out, "few") for n in row["num_tokens"])
    assert metrics["settings"]["sampling"]["seed"] == 1
    final = json.loads((out / "final_result.json").read_text())
    assert final["dataset_acc"] == {"sums": final["dataset_acc"]["sums"], "few": metrics["acc"]}
    assert final["final_acc"] == pytest.approx(sum(final["dataset_acc"].values()) / 2)
    assert final["num_samples"] == 8


def test_the_same_bytes_for_any_batch_size_and_number_of_workers(model_folder, problems, tmp_path):
    texts = set()
    for name, fields in {
        "a": {},
        "b": {"sampling": {"batch_size": 1}},
        "c": {"sampling": {"batch_size": 64}, "workers": 2},
    }.items():
        _run(_config(**fields), model_folder, problems, tmp_path / name)
        texts.add((tmp_path / name / "sums" / "test_cot_-1_seed1_t0.6_s0_e-1_result.jsonl").read_bytes())
    assert len(texts) == 1


def test_the_seed_decides_the_samples(model_folder, problems, tmp_path):
    first = _run(_config(), model_folder, problems, tmp_path / "a")
    _run(_config(sampling={"seed": 2}), model_folder, problems, tmp_path / "b")
    assert first.counters == {"items": 12}
    one, other = _rows(tmp_path / "a"), _rows(tmp_path / "b")
    assert sum(a["code"] != b["code"] for a, b in zip(one, other, strict=True)) >= 10
    assert sum(row["code"][0] != row["code"][1] for row in one) >= 10


@pytest.mark.parametrize("fail_after", [0, 1, 5, 23])
def test_a_stopped_run_resumes_to_the_same_bytes(model_folder, problems, tmp_path, monkeypatch, fail_after):
    _run(_config(), model_folder, problems, tmp_path / "whole")
    generate = transformers_backend.TransformersGenerator.generate
    made: list[str] = []

    def failing(self, requests):
        for number, sample in enumerate(generate(self, requests)):
            if number == fail_after:
                raise KeyboardInterrupt
            made.append(sample.id)
            yield sample

    monkeypatch.setattr(transformers_backend.TransformersGenerator, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        _run(_config(), model_folder, problems, tmp_path / "cut")

    def counting(self, requests):
        for sample in generate(self, requests):
            made.append(sample.id)
            yield sample

    monkeypatch.setattr(transformers_backend.TransformersGenerator, "generate", counting)
    _run(_config(), model_folder, problems, tmp_path / "cut")
    assert sorted(made) == sorted(f"sums/{item}/{sample}" for item in range(12) for sample in range(2))
    name = "sums/test_cot_-1_seed1_t0.6_s0_e-1_result.jsonl"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "cut").rglob("*samples*"))


@pytest.fixture
def answering(monkeypatch) -> Callable[..., None]:
    """Let the model answer with given texts, in turn, each ended by a reason."""

    def set_answers(*answers: tuple[str, str]) -> None:
        def answer(self, requests):
            for request, (text, reason) in zip(
                sorted(requests, key=lambda one: one.seed), cycle(answers), strict=False
            ):
                yield Sample(request.id, [1, 2, 3], text, reason)

        monkeypatch.setattr(transformers_backend.TransformersGenerator, "generate", answer)

    return set_answers


def test_right_answers_are_scored(model_folder, problems, tmp_path, monkeypatch):
    def answer(self, requests):
        for request in requests:
            question = make_tokenizer().decode(request.prompt_ids)
            a = int(question.split("Question:")[-1].split()[0])
            text = f" {a}+{a + 1}={2 * a + 1}. The answer is \\boxed{{{2 * a + 1 if a % 2 else 0}}}."
            yield Sample(request.id, [1, 2, 3], text, "eos")

    monkeypatch.setattr(transformers_backend.TransformersGenerator, "generate", answer)
    config = _config(few_shot=1, examples={"dataset": "e", "split": "train"})
    summary = _run(config, model_folder, problems, tmp_path / "out", examples=[problems])
    assert summary.metrics["sums"]["accuracy"] == 0.5
    assert summary.metrics["sums"]["pass_at_k"] == {"1": 0.5, "2": 0.5}
    (metrics,) = (tmp_path / "out" / "sums").glob("*_metrics.json")
    assert json.loads(metrics.read_text())["token_entropy"].startswith("known only of tokens that")
    for row in _rows(tmp_path / "out"):
        assert row["score"] == [row["idx"] % 2 == 1] * 2
        assert row["pred"][0] == str(row["gt"] if row["idx"] % 2 else 0)
        assert row["num_tokens"] == [3, 3]


def _write(path: Path, answers: list[Any], **fields: Any) -> Path:
    rows = [{"question": f"{n} plus 1?", "answer": answer} | fields for n, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("text", "reason", "verdict"),
    [
        ("So 3 and then 7", "eos", "correct"),
        ("So 3 and then 7", "length", "unparsed"),  # what it broke off in is no answer
        ("The answer is 7", "length", "unparsed"),  # the number may go on
        ("The answer is 7. So", "length", "correct"),
        ("\\boxed{7} and then 8", "length", "correct"),
        ("\\boxed{7", "length", "unparsed"),
    ],
)
def test_of_a_cut_completion_only_a_whole_answer_counts(
    model_folder, tmp_path, answering, text, reason, verdict, caplog
):
    answering((text, reason))
    _run(_config(), model_folder, _write(tmp_path / "sums.jsonl", [7]), tmp_path / "out")
    (row,) = _rows(tmp_path / "out")
    assert row["verdict"] == [verdict] * 2
    assert ("2 of 2 completions give no answer that can be read" in caplog.text) == (verdict == "unparsed")


def test_the_rule_of_extraction_decides_and_stands_in_the_metrics(model_folder, tmp_path, answering):
    answering(("<think> it may be \\boxed{30}", "eos"))  # an unfinished thought, which upstream takes
    path = _write(tmp_path / "sums.jsonl", [30])
    for rule, verdict in (("ladle", "unparsed"), ("upstream", "correct")):
        _run(_config(extraction=rule), model_folder, path, tmp_path / rule)
        assert _rows(tmp_path / rule)[0]["verdict"] == [verdict] * 2
        (metrics,) = (tmp_path / rule / "sums").glob("*_metrics.json")
        assert json.loads(metrics.read_text())["settings"]["extraction"] == rule
        assert rescore(tmp_path / rule)[0].changes == []


def test_known_answers_that_cannot_be_read_are_named_before_the_first_sample(model_folder, tmp_path, caplog, answering):
    answering(("7", "eos"))
    some = _write(tmp_path / "some.jsonl", ["7", "\\frac{", "8"])
    summary = _run(_config(), model_folder, some, tmp_path / "some")
    assert "1 of 3 known answers of sums cannot be read, such as" in caplog.text
    assert summary.metrics["sums"]["gold_unreadable"] == 1
    answering()  # nothing may be sampled
    none = _write(tmp_path / "none.jsonl", ["\\frac{", "\\sqrt{"])
    with pytest.raises(UserError, match="2 of 2 known answers of sums cannot be read"):
        _run(_config(), model_folder, none, tmp_path / "none")


@pytest.mark.parametrize(
    "fields",
    [
        {"answer_type": "banana", "error": "n/a", "unit": "apples", "is_multiple_answer": True, "verdict": "?"},
        {"error": 100, "answer_type": "text", "type": "set", "tolerance": 5},
        {"choices": [1, {"a": None}], "level": None},
    ],
)
def test_rescore_finds_no_change_in_files_of_our_own(model_folder, tmp_path, answering, fields):
    answering(("7 apples", "eos"), ("8", "length"), ("so \\boxed{7}", "eos"), ("7, 8", "stop"))
    path = _write(tmp_path / "sums.jsonl", [7, "7", 8, 107], **fields)
    config = {"benchmarks": [{"name": "sums", "dataset": "x", "type": "number"}], "grader": {"rounding_digits": 2}}
    _run(_config(**config), model_folder, path, tmp_path / "out")
    (again,) = rescore(tmp_path / "out")
    assert again.num_answers == 8
    assert again.changes == []


def test_a_prompt_beyond_the_context_is_refused_before_anything_is_loaded(model_folder, tmp_path, answering):
    answering()
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps({"question": "1 plus " * 4000 + "1?", "answer": 1}))
    with pytest.raises(UserError, match=r"the prompt of sums/0 has .* tokens, and the model takes 8,192"):
        _run(_config(), model_folder, path, tmp_path / "out")


def test_a_template_that_writes_the_date_needs_one(model_folder, tmp_path, answering):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
    model = tmp_path / "dated"
    shutil.copytree(model_folder, model)
    tokenizer.save_pretrained(model)
    path = _write(tmp_path / "sums.jsonl", [7])
    with pytest.raises(UserError, match=r"another day gives other bytes: set evaluate\.template_date"):
        _run(_config(prompt="chat"), model, path, tmp_path / "out")
    tasks, *_ = evaluate_module._complete(
        _config(prompt="chat", template_date="2024-07-26", sampling={"max_new_tokens": 1, "samples": 1}),
        {"model": [model], "benchmark:sums": [path]},
        tmp_path / "out",
    )
    assert tasks[0].prompts[0].text == "26 Jul 2024: 0 plus 1?"
