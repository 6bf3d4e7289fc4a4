"""Get what the pipeline starts from: a clean local model, a fresh one, a Hub dataset, or generated problems."""

from __future__ import annotations

from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerFast

from ladle.data.config import FetchDatasetConfig, WordProblemsConfig
from ladle.data.rows import read_rows
from ladle.data.word_problems import write_word_problems
from ladle.errors import UserError
from ladle.models.config import FetchModelConfig, InitModelConfig
from ladle.models.importing import import_model
from ladle.models.load import init_model, save_model
from ladle.models.tokenizer import load_fast_tokenizer, train_tokenizer
from ladle.stage import Inputs, StageResult

FetchConfig = FetchModelConfig | InitModelConfig | FetchDatasetConfig | WordProblemsConfig


def run(config: FetchConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write into `out` what the config is for.

    Args:
        config: its class says what to get.
        inputs: `model` or `dataset`: the source; `tokenizer` or `tokenizer_data`: a fresh model's; none for problems.
        out: the artifact's folder.
    """
    match config:
        case FetchModelConfig():
            counters = _import_model(config, inputs, out)
        case InitModelConfig():
            counters = _make_fresh_model(config, inputs, out)
        case FetchDatasetConfig():
            counters = _fetch_dataset(config, inputs, out)
        case WordProblemsConfig():
            counters = write_word_problems(config, out)
    return StageResult(counters)


def _import_model(config: FetchModelConfig, inputs: Inputs, out: Path) -> dict[str, int]:
    """Copy a model into a clean local one: native class, converted tokenizer, no remote code, a report of it all."""
    report = import_model(inputs["model"][0], out, config.dtype)
    return {"parameters": report["parameters"], "mtp_tensors_left_out": report["mtp"]["tensors_left_out"]}


def _make_fresh_model(config: InitModelConfig, inputs: Inputs, out: Path) -> dict[str, int]:
    """Write a model with random weights beside its tokenizer."""
    tokenizer = _load_or_train_tokenizer(config, inputs)
    model = init_model(config.architecture, tokenizer, config.dtype, config.seed)
    save_model(model, tokenizer, out)
    return {"parameters": model.num_parameters(), "vocab_size": len(tokenizer)}


def _load_or_train_tokenizer(config: InitModelConfig, inputs: Inputs) -> PreTrainedTokenizerFast:
    source = config.train_tokenizer
    if source is None:
        return load_fast_tokenizer(inputs["tokenizer"][0])
    rows = read_rows(inputs["tokenizer_data"], source.split)
    return train_tokenizer((row[source.text] for row in rows), source.vocab_size)


def _fetch_dataset(config: FetchDatasetConfig, inputs: Inputs, out: Path) -> dict[str, int]:
    """Write every split of a Hub dataset as `<split>.parquet`."""
    try:
        splits = load_dataset(str(inputs["dataset"][0]), name=config.hub_subset())
    except (ValueError, FileNotFoundError, DatasetsError) as error:
        reason = " ".join(str(error).replace(str(inputs["dataset"][0]), "it").split())
        raise UserError(
            f"dataset {config.dataset} cannot be loaded: {reason}", "name a subset that it has: org/name:subset"
        ) from error
    assert isinstance(splits, DatasetDict)  # as no one split is asked for
    for name, split in splits.items():
        split.to_parquet(out / f"{name}.parquet")
    return {f"{name}_rows": len(split) for name, split in splits.items()}
