"""The names and defaults of `trainer:` are transformers'; what cannot work is refused before a model is loaded."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from pydantic import ValidationError

from ladle.errors import UserError
from ladle.models.load import usable_attention
from ladle.training.arguments import make_arguments
from ladle.training.config import (
    DEFAULTS,
    EXECUTION_ARGUMENTS,
    PretrainConfig,
    TrainerArguments,
    TrainingConfig,
    training_arguments,
)


def refused(folder, trainer: dict | None = None, **section: object) -> str:
    config = PretrainConfig.model_validate({"trainer": trainer or {}, **section})
    with pytest.raises(UserError) as caught:
        make_arguments(config, folder)
    return str(caught.value)


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find_spec(name) if name == "transformers" else None)
    assert "pip install wandb" in refused(tmp_path, {"report_to": ["wandb"]})
    assert "pip install trackio" in refused(tmp_path, {"report_to": "trackio"})


def test_a_tracker_that_nobody_knows_names_those_there_are(tmp_path):
    message = refused(tmp_path, {"report_to": ["tensorbord"]})
    assert "report_to: tensorbord is not a tracker" in message
    assert "tensorboard" in message
    for nothing in (None, "none", []):
        make_arguments(PretrainConfig.model_validate({"trainer": {"report_to": nothing}}), tmp_path)


@pytest.mark.parametrize(
    ("argument", "value", "fix"),
    [
        ("load_best_model_at_end", True, "soup: {select: …}"),
        ("deepspeed", {"zero_optimization": {"stage": 3}}, "distributed: zero2"),
        ("fsdp", "full_shard", "distributed: fsdp"),
        ("label_smoothing_factor", 0.1, "leave it out"),
        ("auto_find_batch_size", True, "ladle doctor"),
        ("ignore_data_skip", True, "other rows after a restart"),
        ("enable_jit_checkpoint", True, "SIGTERM"),
        ("push_to_hub", True, "ladle push"),
        ("train_sampling_strategy", "group_by_length", "would be ignored"),
        ("average_tokens_across_devices", False, "mean over its tokens"),
        ("neftune_noise_alpha", 5.0, "not something that Ladle's training loop does"),
        ("lr_scheduler_type", "reduce_lr_on_plateau", "does not follow from the step"),
    ],
)
def test_an_argument_that_ladle_does_not_support(argument, value, fix, tmp_path):
    message = refused(tmp_path, {argument: value})
    assert f"trainer.{argument}" in message
    assert fix in message


@pytest.mark.parametrize("argument", ["resume_from_checkpoint", "output_dir", "overwrite_output_dir"])
def test_an_argument_that_is_the_steps_own(argument):
    with pytest.raises(ValidationError, match=f"trainer.{argument} is not an argument that Ladle takes: leave it out"):
        PretrainConfig.model_validate({"trainer": {argument: "checkpoint-5"}})


def test_weights_in_float16(tmp_path):
    assert "trainer.fp16=true" in refused(tmp_path, dtype="float16")


def test_zero2_in_one_process_without_deepspeed_or_with_skips(tmp_path, monkeypatch):
    assert "and there is one" in refused(tmp_path, distributed="zero2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "nan_policy: skip does not work" in refused(tmp_path, distributed="zero2", processes=2, nan_policy="skip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "ladle[deepspeed]" in refused(tmp_path, distributed="zero2", processes=2)


def test_more_processes_than_were_started_or_than_gpus(tmp_path, monkeypatch):
    assert "sets 4 processes per machine and 1 were started" in refused(tmp_path, processes=4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "this machine has 2 GPUs" in refused(tmp_path, processes=4)


def test_flash_attention_falls_back_to_sdpa_with_a_warning(caplog):
    assert usable_attention("eager") == "eager"
    with caplog.at_level("WARNING", logger="ladle"):
        assert usable_attention("flash_attention_2") == "sdpa"
    assert "attn_implementation: flash_attention_2 cannot run here (it needs a GPU): using sdpa" in caplog.text


def fault(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainerArguments.model_validate(values)
    return str(caught.value)


def test_the_names_are_those_of_the_installed_transformers():
    from transformers import TrainingArguments

    assert set(training_arguments()) == set(TrainingArguments.__dataclass_fields__)


def test_the_defaults_are_those_of_the_installed_transformers():
    from transformers import TrainingArguments

    arguments = TrainingArguments(use_cpu=True, report_to="none")
    assert {name: getattr(arguments, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("trainer", "rows", "steps"),
    [
        ({}, 17, 9),  # 3 epochs of 3 steps of 8 rows
        ({"num_train_epochs": 0.5, "gradient_accumulation_steps": 2}, 100, 4),
        ({"max_steps": 5}, 100, 5),
        ({"max_steps": 5}, None, 5),
        ({}, None, None),
    ],
)
def test_steps_follow_from_rows_epochs_and_max_steps(trainer, rows, steps):
    assert TrainingConfig.model_validate({"trainer": trainer}).num_steps(rows) == steps


def test_every_execution_argument_exists():
    assert set(training_arguments()) >= EXECUTION_ARGUMENTS


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("warmup_ratio", "warmup_steps: 0.1"),
        ("overwrite_output_dir", "leave it out"),
        ("learning_rat", "'learning_rate'"),
        ("torch_dtype", "dtype"),
    ],
)
def test_an_old_or_misspelt_name_is_answered_with_the_right_one(name, advice):
    assert advice in fault(**{name: 1})


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("learning_rate", "1e-3", "='1e-3' is text, not a number: write the number without quotes"),
        ("learning_rate", "fast", "='fast' is text, not a number"),
        ("learning_rate", [1e-3], "=[0.001] is not a number"),
        ("max_steps", 1e3, "=1000.0 is not a whole number"),
        ("max_steps", None, "=None is not a whole number"),
        ("seed", True, "=True is not a whole number"),
        ("bf16", "yes", "='yes' is text, not true or false: write true or false"),
        ("gradient_checkpointing", 1, "=1 is not true or false"),
    ],
)
def test_a_value_of_another_kind_than_its_argument_is_refused(name, value, advice):
    assert f"trainer.{name}{advice}" in fault(**{name: value})


def test_values_of_their_arguments_kind_are_taken():
    values = {"learning_rate": 1, "warmup_steps": 0.1, "max_steps": 3, "bf16": True, "save_total_limit": None}
    values |= {"report_to": ["none"], "lr_scheduler_kwargs": {"num_cycles": 2}, "run_name": "x", "tf32": None}
    assert TrainerArguments.model_validate(values).values() == values


def test_log_settings_are_not_identity():
    one = TrainerArguments.model_validate({"learning_rate": 1e-4, "logging_steps": 1})
    two = TrainerArguments.model_validate({"logging_steps": 50, "learning_rate": 1e-4, "report_to": "none"})
    assert one.identity() == two.identity() == {"learning_rate": 1e-4}
