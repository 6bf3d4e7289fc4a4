"""A training on rows in memory, without a stage around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ladle.training.arguments import make_arguments
from ladle.training.config import PretrainConfig
from ladle.training.loop import Training
from ladle.training.parallel import join_world
from ladle.training.pretrain import PretrainTask
from tests.tiny_models import make_tokenizer


def make_rows(count: int, length: int, vocab_size: int = 300, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return rows of random tokens, two documents in each."""
    rng, half = np.random.default_rng(seed), length // 2
    rows = []
    for _ in range(count):
        tokens = rng.integers(2, vocab_size, length)
        positions = np.concatenate([np.arange(half), np.arange(length - half)])
        rows.append({"input_ids": tokens, "position_ids": positions, "labels": np.where(positions == 0, -100, tokens)})
    return rows


def prepare(model: Any, rows: Any, folder: Path, trainer: dict[str, Any], **section: Any) -> Training:
    """Return a training of a model on rows, with the arguments of `trainer:` and of its section."""
    rate = section.pop("router_bias_update_rate", 0.0)
    config = PretrainConfig.model_validate({"trainer": {"report_to": "none", **trainer}, **section})
    arguments = make_arguments(config, folder)
    return Training(config, PretrainTask(rows), model, make_tokenizer(), join_world(), arguments, rate)


def train(model: Any, rows: Any, folder: Path, trainer: dict[str, Any], **section: Any) -> Training:
    """Train to the end and return what was run."""
    training = prepare(model, rows, folder, trainer, **section)
    training.run()
    return training
