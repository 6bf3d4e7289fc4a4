from __future__ import annotations

import pytest
from pydantic import ValidationError

from ladle.training.arguments import EXECUTION_ARGUMENTS, TrainerArguments, training_argument_names


def fault(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainerArguments.model_validate(values)
    return str(caught.value)


def test_the_names_are_those_of_the_installed_transformers():
    from transformers import TrainingArguments

    assert training_argument_names() == set(TrainingArguments.__dataclass_fields__)


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
