"""The names and defaults of `trainer:` are transformers'; what cannot work is refused before a model is loaded."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch
from pydantic import ValidationError
from transformers import TrainingArguments
from transformers.integrations import integration_utils

from ladle.errors import UserError
from ladle.models.load import usable_attention
from ladle.training.arguments import make_arguments
from ladle.training.config import (
    EXECUTION_ARGUMENTS,
    HONOURED,
    PretrainConfig,
    TrainerArguments,
    TrainingConfig,
    training_arguments,
)


def refused(folder, trainer: dict | None = None, **section: object) -> str:
    with pytest.raises((UserError, ValidationError)) as caught:
        make_arguments(PretrainConfig.model_validate({"trainer": trainer or {}, **section}), folder)
    return str(caught.value)


def test_a_tracker_that_is_not_installed_or_that_nobody_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    assert "pip install wandb" in refused(tmp_path, {"report_to": ["wandb"]})
    message = refused(tmp_path, {"report_to": ["tensorbord"]})
    assert "tensorbord is not supported" in message
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
        ("train_sampling_strategy", "group_by_length", "an order that a restart finds"),
        ("average_tokens_across_devices", False, "the mean over its tokens"),
        ("neftune_noise_alpha", 5.0, "the training loop does nothing with it"),
        ("lr_scheduler_type", "reduce_lr_on_plateau", "that follows from the step"),
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


def test_torch_compile_leaves_tf32_off_and_has_no_eager_backend_for_checkpointed_activations(tmp_path):
    config = PretrainConfig.model_validate({"trainer": {"torch_compile": True, "report_to": "none"}})
    assert make_arguments(config, tmp_path).tf32 is False
    message = refused(tmp_path, {"torch_compile_backend": "eager", "gradient_checkpointing": True})
    assert "set it to aot_eager or inductor" in message


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


def test_names_and_defaults_are_those_of_the_installed_transformers():
    fields = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    factories = {name for name, default in fields.items() if default is dataclasses.MISSING}
    assert {name: argument.default for name, argument in training_arguments().items()} == {
        name: None if name in factories else default for name, default in fields.items()
    }


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


def test_every_argument_that_is_named_exists():
    assert set(training_arguments()) >= EXECUTION_ARGUMENTS | HONOURED


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


def test_what_stands_together_is_checked():
    for section, said in (
        ({"selective_checkpointing": True}, "set trainer.activation_checkpointing: true"),
        ({"extends": "a", "model": "b"}, "leave model out"),
        ({"keep_training_state": True, "trainer": {"save_strategy": "no"}}, "set trainer.save_strategy: steps"),
        ({"offload_to_cpu": True}, "set distributed: fsdp"),
        ({"pure_bf16": True}, "set dtype: bfloat16"),
    ):
        with pytest.raises(ValidationError, match=said):
            PretrainConfig.model_validate(section)


@pytest.mark.parametrize(("section", "what"), [({"distributed": "fsdp"}, "shards"), ({"dtype": "bfloat16"}, "float32")])
def test_an_optimizer_that_neither_shards_nor_masters_take_names_those_that_they_do(section, what, tmp_path):
    message = refused(tmp_path, {"optim": "adafactor"}, **section)
    assert f"trainer.optim=adafactor does not work on {what if what == 'shards' else 'the float32 weights'}" in message
    assert "set optim to one of adamw_torch, adamw_torch_fused, sgd, adagrad, rmsprop, or train in float32" in message


def test_the_seeds_keys_are_honoured_or_refused_with_their_replacement():
    """Every key of the two reports' training configs (docs/from-the-reports.md)."""
    honoured = {
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate", "bf16",
        "lr_scheduler_type", "lr_scheduler_kwargs", "weight_decay", "max_grad_norm", "logging_steps", "save_strategy",
        "save_steps", "save_total_limit", "seed", "report_to", "gradient_checkpointing", "eval_strategy", "eval_steps",
        "gradient_checkpointing_kwargs", "use_liger_kernel", "warmup_steps", "do_eval", "logging_first_step",
    }  # fmt: skip
    assert honoured <= HONOURED
    replaced = ("warmup_ratio", "overwrite_output_dir", "output_dir", "torch_dtype", "model_name_or_path", "deepspeed")
    for name in (*replaced, "attn_implementation", "trust_remote_code", "dataset_name", "use_liger_loss"):
        with pytest.raises(
            ValidationError, match=f"trainer.{name} is not an argument that Ladle takes: (use|set|leave)"
        ):
            TrainerArguments.model_validate({name: True})
