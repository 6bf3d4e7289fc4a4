"""The `trainer:` blocks of a recipe: transformers.TrainingArguments by its own names, checked without importing it.

The names are read from the installed transformers' source (a syntax tree, about 60 ms, no torch), so they are those of
the installed version.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, model_validator

from ladle.config import Config
from ladle.errors import UserError

RENAMED = {
    "warmup_ratio": "warmup_steps (a value below 1 is a share of all steps: warmup_steps: 0.1)",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "torch_dtype": "dtype, beside `trainer:` and not in it",
    "adam_eps": "adam_epsilon",
    "lr": "learning_rate",
}
REMOVED = {
    "overwrite_output_dir": "leave it out: a step resumes or starts in a folder of its own",
    "output_dir": "leave it out: the step's folder is the output; --out or --root place it",
    "resume_from_checkpoint": "leave it out: a stopped step goes on by itself",
}
EXECUTION_ARGUMENTS = frozenset(
    [
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "ddp_backend",
        "ddp_timeout",
        "disable_tqdm",
        "hub_model_id",
        "hub_private_repo",
        "hub_strategy",
        "hub_token",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "project",
        "push_to_hub",
        "report_to",
        "run_name",
        "trackio_space_id",
        "use_cpu",
    ]
)
"""Arguments that change how a run goes or what it says, never its weights: not part of a step's identity."""
DEFAULTS: dict[str, Any] = {
    "eval_strategy": "no",
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-5,
    "max_steps": -1,
    "num_train_epochs": 3.0,
    "optim": "adamw_torch_fused",
    "per_device_train_batch_size": 8,
    "save_steps": 500,
    "save_strategy": "steps",
    "seed": 42,
    "warmup_steps": 0,
}
"""transformers' own defaults of the arguments that Ladle reads without importing it; of all others, None or false."""


class TrainerArguments(Config):
    """Arguments of transformers.TrainingArguments, as they are; an unknown or renamed one is refused."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in values:
                _check_name(str(name))
        return values

    def values(self) -> dict[str, Any]:
        """Return the arguments that the recipe sets."""
        return dict(self.model_extra or {})

    def get(self, name: str) -> Any:
        """Return an argument as the recipe sets it, else transformers' default."""
        return self.values().get(name, DEFAULTS.get(name))

    def identity(self) -> dict[str, Any]:
        """Return the arguments that decide the weights."""
        return {name: value for name, value in sorted(self.values().items()) if name not in EXECUTION_ARGUMENTS}


def _check_name(name: str) -> None:
    if name in REMOVED:
        raise UserError(f"trainer.{name} is not an argument of Ladle's", REMOVED[name])
    known = training_argument_names()
    if name in known:
        return
    if name in RENAMED:
        raise UserError(f"trainer.{name} is not an argument of this transformers version", f"use {RENAMED[name]}")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise UserError(
        f"unknown argument trainer.{name}", f"did you mean {close[0]!r}?" if close else "see TrainingArguments"
    )


@functools.cache
def training_argument_names() -> frozenset[str]:
    """Return the field names of the installed transformers.TrainingArguments.

    Raises:
        UserError: transformers is not installed.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise UserError("transformers is not installed", "pip install ladle")
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    fields = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return frozenset(
        node.target.id for node in fields.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    )
