"""Get what the pipeline starts from: a clean local model, a fresh one, a Hub dataset, or generated problems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetsError

from ladle.data.config import FetchDatasetConfig, WordProblemsConfig
from ladle.data.rows import read_placed_rows
from ladle.data.word_problems import write_word_problems
from ladle.errors import UserError
from ladle.models.config import FetchModelConfig, InitModelConfig
from ladle.models.load import import_model, init_model, save_model
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
        case FetchModelConfig():  # a clean local one: native class, converted tokenizer, no remote code
            report = import_model(inputs["model"][0], out, config.dtype)
            counters = {"parameters": report["parameters"], "mtp_tensors_left_out": report["mtp"]["tensors_left_out"]}
        case InitModelConfig():
            if (data := config.train_tokenizer) is None:
                tokenizer = load_fast_tokenizer(inputs["tokenizer"][0])
            else:
                tokenizer = train_tokenizer(_texts(inputs["tokenizer_data"], data.split, data.text), data.vocab_size)
            model = init_model(config.architecture, tokenizer, config.dtype, config.seed)
            save_model(model, tokenizer, out)
            counters = {"parameters": model.num_parameters(), "vocab_size": len(tokenizer)}
        case FetchDatasetConfig():
            counters = _fetch_dataset(config, inputs["dataset"][0], out)
        case WordProblemsConfig():
            counters = write_word_problems(config, out)
    return StageResult(counters)


def _texts(paths: list[Path], split: str, column: str) -> Iterator[str]:
    for place, row in read_placed_rows(paths, split):
        if not isinstance(row.get(column), str):
            problem = f"{place} has no text in column {column!r} (it has {', '.join(row)})"
            raise UserError(problem, "set `text` of the tokenizer's data to the column with text")
        yield row[column]


def _fetch_dataset(config: FetchDatasetConfig, folder: Path, out: Path) -> dict[str, int]:
    """Write every split of a Hub dataset as `<split>.parquet`."""
    try:
        splits = load_dataset(str(folder), name=config.hub_subset())
    except (ValueError, FileNotFoundError, DatasetsError) as error:
        reason = " ".join(str(error).replace(str(folder), "it").split())
        raise UserError(
            f"dataset {config.dataset} cannot be loaded: {reason}", "name a subset that it has: org/name:subset"
        ) from error
    assert isinstance(splits, DatasetDict)  # as no single split is requested
    for name, split in splits.items():
        split.to_parquet(out / f"{name}.parquet")
    return {f"{name}_rows": len(split) for name, split in splits.items()}
