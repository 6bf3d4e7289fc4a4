from __future__ import annotations

import pytest
from pydantic import ValidationError

from ladle.training.config import (
    DEFAULTS,
    EXECUTION_ARGUMENTS,
    TrainerArguments,
    TrainingConfig,
    training_argument_names,
)


def fault(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainerArguments.model_validate(values)
    return str(caught.value)


def test_the_names_are_those_of_the_installed_transformers():
    from transformers import TrainingArguments

    assert training_argument_names() == set(TrainingArguments.__dataclass_fields__)


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
    assert training_argument_names() >= EXECUTION_ARGUMENTS


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


def test_log_settings_are_not_identity():
    one = TrainerArguments.model_validate({"learning_rate": 1e-4, "logging_steps": 1})
    two = TrainerArguments.model_validate({"logging_steps": 50, "learning_rate": 1e-4, "report_to": "none"})
    assert one.identity() == two.identity() == {"learning_rate": 1e-4}
