from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from ladle.evaluation.config import EvaluateConfig, EvaluateModelConfig


def _config(**fields) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"models": ["base"], "benchmarks": ["gsm8k"]} | fields)


def test_names_stand_for_models_and_benchmarks():
    config = _config(models=["base", {"model": "out/my soup", "few_shot": 0}], benchmarks=["gsm8k", {"name": "mine"}])
    assert [choice.label for choice in config.models] == ["base", "my-soup"]
    assert [choice.name for choice in config.benchmarks] == ["gsm8k", "mine"]


@pytest.mark.parametrize(
    ("given", "name"),
    [("mine.jsonl", "mine"), ("data/mine/test.jsonl", "mine"), ("data/my set.parquet", "my-set"), ("b.csv.gz", "b")],
)
def test_a_file_is_a_custom_benchmark(given, name):
    (choice,) = _config(benchmarks=[given]).benchmarks
    assert (choice.name, choice.dataset) == (name, given)


def test_the_defaults_are_the_published_settings():
    sampling = _config().sampling
    assert (sampling.temperature, sampling.samples, sampling.max_new_tokens, sampling.seed) == (0.6, 1, 3072, 1)
    assert _config(sampling={"max_new_tokens": 64}).sampling.temperature == 0.6


def test_one_models_settings():
    config = _config(
        models=["base", {"model": "kto", "few_shot": 0, "prompt": "chat"}], few_shot=2, examples={"dataset": "e.jsonl"}
    )
    base, kto = (EvaluateModelConfig.of(config, choice) for choice in config.models)
    assert (base.few_shot, base.prompt, base.examples is None) == (2, None, False)
    assert (kto.few_shot, kto.prompt, kto.examples is None) == (0, "chat", True)


def test_where_things_are_is_no_part_of_the_identity():
    first = _config(data="a", benchmarks=[{"name": "gsm8k", "dataset": "x"}], workers=2, sampling={"batch_size": 3})
    second = _config(data="b", benchmarks=[{"name": "gsm8k", "dataset": "y"}])
    one, other = (EvaluateModelConfig.of(config, config.models[0]).identity() for config in (first, second))
    assert one == other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"few_shot": 1}, "few_shot is 1, and there are no examples"),
        ({"models": [{"model": "base", "few_shot": 2}]}, "few_shot is 2, and there are no examples"),
        ({"system_prompt": "Be brief."}, "prompt is not: set prompt: chat"),
        (
            {"system_prompt": "Be brief.", "prompt": "chat", "models": ["a", {"model": "b", "prompt": "cot"}]},
            "prompt is cot: set prompt: chat",
        ),
        ({"benchmarks": [{"name": "mine", "question": "{Body} {"}]}, "question is not a template: '{Body} {'"),
        ({"examples": {"dataset": "d", "question": "{}"}}, "question is '{}', whose braces"),
    ],
)
def test_prompts_that_cannot_be_made_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        _config(**fields)


@pytest.mark.parametrize("fields", [{"models": ["a", "b/a"]}, {"benchmarks": ["gsm8k", "gsm8k"]}])
def test_a_name_stands_once(fields):
    with pytest.raises(ValidationError, match="twice"):
        _config(**fields)


def test_the_config_needs_no_heavy_library():
    code = "import sys, ladle.evaluation.config as c; c.BenchmarkChoice(name='gsm8k').hub_source(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "numpy", "pyarrow"} & set(loaded)
