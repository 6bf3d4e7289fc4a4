"""Get what the pipeline starts from: a clean local model, a fresh one, a Hub dataset, or generated problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ladle.config import Config


def run(config: Config, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Do what the config's `kind` says."""
    ways: dict[str, Callable[[Any, dict[str, list[Path]], Path], dict[str, Any]]] = {
        "model": _import_model,
        "init": _init_model,
        "dataset": _fetch_dataset,
        "word_problems": _word_problems,
    }
    return ways[config.kind](config, inputs, out)  # type: ignore[attr-defined]


def _import_model(config: Any, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Copy a model into a clean local one: native class, converted tokenizer, no remote code."""
    from ladle.models.load import load_model, model_dir, save_model
    from ladle.models.tokenizer import load_fast_tokenizer

    source = inputs["model"][0]
    model = load_model(source, config.dtype or "auto")
    save_model(model, load_fast_tokenizer(model_dir(source)), out)
    return {"counters": {"parameters": model.num_parameters()}}


def _init_model(config: Any, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Write a fresh model with random weights beside its tokenizer, imported or trained on the spot."""
    from ladle.data.read_rows import read_rows
    from ladle.models.load import init_model, save_model
    from ladle.models.tokenizer import load_fast_tokenizer
    from ladle.models.train_tokenizer import train_tokenizer

    if config.train_tokenizer is None:
        tokenizer = load_fast_tokenizer(inputs["tokenizer"][0])
    else:
        rows = read_rows(inputs["tokenizer_data"], config.train_tokenizer.split)
        tokenizer = train_tokenizer(
            (row[config.train_tokenizer.text] for row in rows), config.train_tokenizer.vocab_size
        )
    model = init_model(config.architecture, tokenizer, config.dtype, config.seed)
    save_model(model, tokenizer, out)
    return {"counters": {"parameters": model.num_parameters(), "vocab_size": len(tokenizer)}}


def _fetch_dataset(config: Any, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Write every split of a Hub dataset as `<split>.parquet`."""
    from datasets import load_dataset

    splits = load_dataset(str(inputs["dataset"][0]), name=config.subset)
    for name, split in splits.items():  # type: ignore[union-attr]
        split.to_parquet(out / f"{name}.parquet")
    return {"counters": {f"{name}_rows": len(split) for name, split in splits.items()}}  # type: ignore[union-attr, arg-type]


def _word_problems(config: Any, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    from ladle.data.word_problems import write_word_problems

    return {"counters": write_word_problems(config, out)}
