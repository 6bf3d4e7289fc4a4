"""A small pretraining on generated problems."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.data.config import MixConfig, WordProblemsConfig
from ladle.data.word_problems import write_word_problems
from ladle.models.load import save_model
from ladle.stages import mix
from ladle.training.config import PretrainConfig, TrainingConfig
from tests.tiny_models import make_model, make_tokenizer

STEPS, SAVE_EVERY = 40, 4


@dataclass(frozen=True)
class Job:
    """A training and what it reads; `stage` is the module under `ladle.stages` that runs it."""

    config: TrainingConfig
    inputs: dict[str, list[Path]]
    stage: str = "pretrain"


def make_job(
    folder: Path,
    shape: str,
    processes: int = 1,
    dtype: str = "float32",
    distributed: str = "ddp",
    accumulation: int = 2,
    changes: dict[str, Any] | None = None,
) -> Job:
    """Write a model (of a shape with some `changes`) and a mixture and return the training on them."""
    model, tokenizer = folder / "base", make_tokenizer()
    save_model(make_model(shape, len(tokenizer), **(changes or {})), tokenizer, model)
    trainer = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "save_steps": SAVE_EVERY,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": 7,
        # sums of three processes' gradients round by their place in DDP's buckets, which must not be rebuilt
        "gradient_checkpointing": processes > 2,
    }
    sections = {"trainer": trainer, "dtype": dtype, "processes": processes, "distributed": distributed}
    return Job(PretrainConfig.model_validate(sections), {"model": [model], "mixture": [make_mixture(folder, model)]})


def make_mixture(folder: Path, tokenizer: Path) -> Path:
    """Write 200 rows of 64 tokens, and 7 to validate on."""
    problems, mixture = folder / "problems", folder / "mixture"
    write_word_problems(WordProblemsConfig(train=300, worksheets=2, prompts=2, validation=2, test=2), problems)
    mixture.mkdir()
    source = {"name": "worked", "dataset": "problems", "split": "worked", "ratio": 1.0, "max_epochs": 50}
    config = MixConfig.model_validate(
        {
            "sources": [source],
            "budget": {"sequences": 200},
            "sequence_length": 64,
            "validation": {"sequences": 7},
            "workers": 1,
        }
    )
    mix.run(config, {"tokenizer": [tokenizer], "source:worked": [problems]}, mixture)
    return mixture
