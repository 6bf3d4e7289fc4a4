"""What bench_mix compares; each runs as a process of its own: `python mix_contenders.py NAME CORPUS TOKENIZER OUT
CORES`.

Prints one line of JSON: tokens read, and the seconds that its parts took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

SEQUENCE_LENGTH = 4096
SEED = 233
BYTES_A_TOKEN = 5.0
"""More than any text here has, so that the budget never exceeds what a source holds."""


def read_sources(corpus: Path) -> dict[str, Path]:
    """Return the files of a corpus by source name."""
    return {file.stem: file for file in sorted(corpus.glob("*.parquet"))}


def run_seeds_way(corpus: Path, tokenizer_folder: Path, out: Path, cores: int) -> dict[str, float]:
    """Tokenize example by example, pack (wrapped), take rows by ratio, concatenate, shuffle, save: the usual script."""
    os.environ["HF_DATASETS_CACHE"] = str(out / "cache")
    import pyarrow.compute as pc
    from datasets import concatenate_datasets, load_dataset
    from transformers import AutoTokenizer
    from trl import pack_dataset

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    def tokenize(example: dict[str, str]) -> dict[str, list[int]]:
        encoded = tokenizer(text=example["text"])
        encoded["input_ids"] = [*encoded["input_ids"], tokenizer.eos_token_id]
        encoded["attention_mask"] = [*encoded["attention_mask"], 1]
        return encoded

    parts, num_tokens, seconds = [], 0, {"tokenize": 0.0, "pack": 0.0, "mix_and_save": 0.0}
    for file in read_sources(corpus).values():
        dataset = load_dataset("parquet", data_files=str(file), split="train")
        processes = min(cores, len(dataset))
        started = time.monotonic()
        tokenized = dataset.map(tokenize, num_proc=processes if processes > 1 else None).select_columns("input_ids")
        seconds["tokenize"] += time.monotonic() - started
        num_tokens += pc.sum(pc.list_value_length(tokenized.data.column("input_ids"))).as_py()
        started = time.monotonic()
        parts.append(pack_dataset(tokenized, SEQUENCE_LENGTH, strategy="wrapped", map_kwargs={"num_proc": processes}))
        seconds["pack"] += time.monotonic() - started
    started = time.monotonic()
    mixed = concatenate_datasets([part.select(range(max(1, int(0.8 * len(part))))) for part in parts])
    mixed.shuffle(seed=SEED).save_to_disk(str(out / "dataset"))
    seconds["mix_and_save"] = time.monotonic() - started
    return {"tokens": num_tokens, **seconds}


def run_ladle(corpus: Path, tokenizer_folder: Path, out: Path, cores: int, engine: str) -> dict[str, float]:
    """The mix stage on the same files: exact ratios, best-fit packing, saved."""
    from ladle.data.config import MixConfig
    from ladle.stages import mix

    files = read_sources(corpus)
    sizes = {name: _text_bytes(file) for name, file in files.items()}
    config = MixConfig.model_validate(
        {
            "sources": [{"name": name, "dataset": str(files[name]), "ratio": sizes[name]} for name in files],
            "normalize": True,
            "budget": {"tokens": max(SEQUENCE_LENGTH, int(0.8 * sum(sizes.values()) / BYTES_A_TOKEN))},
            "sequence_length": SEQUENCE_LENGTH,
            "engine": engine,
            "workers": cores,
            "shard_size_bytes": 2**24,
        }
    )
    inputs = {f"source:{name}": [file] for name, file in files.items()}
    summary = mix.run(config, {"tokenizer": [tokenizer_folder], **inputs}, out)
    return {"tokens": summary.counters["tokens_in"]}


def _text_bytes(file: Path) -> int:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))


CONTENDERS: dict[str, Callable[..., dict[str, float]]] = {
    "seeds_way": run_seeds_way,
    "ladle_hf": lambda *arguments: run_ladle(*arguments, engine="hf"),
    "ladle_fast": lambda *arguments: run_ladle(*arguments, engine="fastokens"),
}


if __name__ == "__main__":
    name, corpus, tokenizer, out, cores = sys.argv[1:]
    print(json.dumps(CONTENDERS[name](Path(corpus), Path(tokenizer), Path(out), int(cores))))
