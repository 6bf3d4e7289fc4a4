"""The mix stage: documents from many sources, by exact ratio, as packed rows of tokens.

find files → cut into pieces → tokenize (the only costly step, kept by content) → choose documents → pack → describe.
mixture.json says what is in the rows, source by source, and accounts for every token. For each source:
tokens in + repeated = train + validation + contaminated + unused + truncated.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ladle.artifacts.files import pretty_json
from ladle.data.config import MixConfig
from ladle.data.contamination import Contamination, find_contamination, read_benchmark_texts
from ladle.data.encoders import Vocabulary, read_vocabulary
from ladle.data.mixing import Selection, select, total_tokens, write_split
from ladle.data.rows import Piece
from ladle.data.store import MIXTURE_FILE, MIXTURE_FORMAT
from ladle.data.tokenize import choose_executor, find_pieces, open_sources, tokenize_pieces
from ladle.errors import CheckFailed
from ladle.executors import Shard
from ladle.stage import Inputs, StageResult

# Finished token shards and a converted tokenizer, while the stage runs.
JOURNAL_FOLDER = "journal"
# Folder of `cache`; another one where the same rows give other tokens. The shards' names stay as they are, since the
# digest of a dataset is made of them.
CACHE_FOLDER = "rows-2"


def run(config: MixConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write the mixed dataset: `tokens/` (shards), `train/` and `validation/` (indices), `mixture.json`.

    Args:
        config: the mixture.
        inputs: `tokenizer`: one folder; `source:<name>`: files and folders of each source; `benchmarks`: where
            `contamination` is set, the folder of benchmarks.
        out: where the dataset goes; leftovers of an earlier try of the same step are used or removed.

    Raises:
        UserError: an input that is missing, damaged, empty, too small, or not of the format that the config says.
    """
    journal = out / JOURNAL_FOLDER
    for path in out.iterdir():
        if path != journal:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept, vocabulary, pieces = _prepare(config, inputs, journal, "tokenizer")
    with FileLock(kept / ".lock"):  # two mixtures must not write one shard at once
        names = tokenize_pieces(config, vocabulary, pieces, kept)
        sources = open_sources(config, vocabulary, pieces, names, kept, out / "tokens")
    contamination = None
    contaminated = [np.empty(0, np.int64) for _ in sources]
    if config.contamination is not None:
        texts = read_benchmark_texts(config.contamination.benchmarks, inputs["benchmarks"])
        num_words, executor = config.contamination.ngram_words, choose_executor(config, pieces)
        contamination = find_contamination(config.sources, pieces, texts, num_words, vocabulary, executor)
        contamination.write(out)
        contaminated = contamination.documents if config.contamination.drop else contaminated
    selections = select(sources, contaminated, config)
    purposes = ["train"] if config.validation is None else ["train", "validation"]
    splits = {purpose: write_split(selections, config, purpose, out / purpose) for purpose in purposes}
    mixture = describe_mixture(config, vocabulary, selections, splits, contamination)
    (out / MIXTURE_FILE).write_text(pretty_json(mixture), encoding="utf-8")
    shutil.rmtree(journal, ignore_errors=True)
    read = {f"source:{one.config.name}": set(one.origins) for one in sources}
    return StageResult(count_tokens(mixture), splits, files_read=read)


def run_shard(config: MixConfig, inputs: Inputs, out: Path, shard: Shard) -> None:
    """Tokenize one share of the sources' pieces; `run` finds them finished."""
    kept, vocabulary, pieces = _prepare(config, inputs, out / JOURNAL_FOLDER, f"tokenizer-{shard.index}")
    tokenize_pieces(config, vocabulary, pieces, kept, shard)


def _prepare(
    config: MixConfig, inputs: Inputs, journal: Path, converted: str
) -> tuple[Path, Vocabulary, list[list[Piece]]]:
    """Return the folder where shards are kept, the tokenizer, and the pieces of each source."""
    kept = Path(config.cache).expanduser() / CACHE_FOLDER if config.cache else journal
    kept.mkdir(parents=True, exist_ok=True)
    vocabulary = read_vocabulary(inputs["tokenizer"][0], journal / converted)
    paths = [inputs[f"source:{source.name}"] for source in config.sources]
    pieces = [find_pieces(*one, config.shard_size_bytes) for one in zip(config.sources, paths, strict=True)]
    return kept, vocabulary, pieces


def describe_mixture(
    config: MixConfig,
    vocabulary: Vocabulary,
    selections: Sequence[Selection],
    splits: Mapping[str, Mapping[str, Any]],
    contamination: Contamination | None,
) -> dict[str, Any]:
    """Return the content of mixture.json.

    Raises:
        CheckFailed: the tokens written are not the tokens chosen, or tokens are missing from the account. That is a
            bug.
    """
    sources = [_describe_source(one, share) for one, share in zip(selections, config.shares(), strict=True)]
    for purpose, split in splits.items():
        chosen = sum(source[f"{purpose}_tokens"] for source in sources)
        if chosen != split["tokens"]:
            raise CheckFailed(f"{purpose} should have {chosen:,} tokens and the index holds {split['tokens']:,}")
    mixture: dict[str, Any] = {
        "format": MIXTURE_FORMAT,
        "sequence_length": config.sequence_length,
        "packing": config.packing,
        "seed": config.seed,
        "vocab_size": vocabulary.vocab_size,
        "eos_id": vocabulary.eos_id,
        "pad_id": vocabulary.pad_id,
        "tokenizer_blake3": vocabulary.digest,
        "sources": sources,
        "splits": splits,
        "shards": [
            {"file": f"tokens/{shard.path.name}", "source": name, "tokens": shard.num_tokens, "rows": shard.num_rows}
            for name, shards in ((one.source.config.name, one.source.shards) for one in selections)
            for shard in shards
        ],
    }
    if config.contamination is not None and contamination is not None:
        mixture["contamination"] = {
            "ngram_words": config.contamination.ngram_words,
            "dropped": config.contamination.drop,
            "benchmarks": contamination.summary,
        }
    return mixture


def count_tokens(mixture: Mapping[str, Any]) -> dict[str, int]:
    """Return the totals over all sources that a record shows: tokens in, out, repeated, and dropped by reason."""
    totals = Counter[str]()
    for source in mixture["sources"]:
        dropped = {f"tokens_{reason}": count for reason, count in sorted(source["dropped_tokens"].items())}
        totals.update(
            tokens_in=source["tokens_in"],
            tokens_repeated=source["repeated_tokens"],
            tokens_out=source["train_tokens"] + source["validation_tokens"],
            **dropped,
            rows_read=source["rows_read"],
            rows_dropped=sum(source["dropped_rows"].values()),
        )
    return dict(totals)


def _describe_source(selection: Selection, share: Fraction) -> dict[str, Any]:
    source, usable, candidates = selection.source, selection.usable, selection.candidates
    trained, validated = (int(used.sum(dtype=np.int64)) for _, used in selection.drawn.values())
    held_out = selection.drawn["validation"][0]
    epoch_tokens = total_tokens(usable, candidates)
    repeated = max(0, trained - epoch_tokens)
    kept = np.concatenate([candidates, held_out])
    dropped = {
        "contaminated": total_tokens(source.lengths, selection.contaminated),
        "truncated": total_tokens(source.lengths, kept) - total_tokens(usable, kept),  # past a row's end
        "unused": max(0, epoch_tokens - trained) + total_tokens(usable, held_out) - validated,
    }
    coming, going = source.num_tokens + repeated, trained + validated + sum(dropped.values())
    if coming != going:
        raise CheckFailed(f"source {source.config.name}: {coming:,} tokens came in and {going:,} are accounted for")
    edges = [2**k for k in range(33)]
    histogram, _ = np.histogram(source.lengths, edges)
    return {
        "name": source.config.name,
        "ratio": float(share),
        "split": source.config.split,
        "tokens_in": source.num_tokens,
        "train_tokens": trained,
        "train_documents": min(len(selection.drawn["train"][0]), len(candidates)),
        "epochs": round(trained / epoch_tokens, 6) if trained else 0.0,
        "repeated_tokens": repeated,
        "repeated_share": round(repeated / trained, 6) if trained else 0.0,
        "validation_tokens": validated,
        "validation_documents": len(held_out),
        "contaminated_documents": len(selection.contaminated),
        "rows_read": int(source.first_documents[-1]),
        "dropped_rows": source.dropped,
        "dropped_tokens": dropped,
        **({"unwritten_rows": source.unwritten} if source.unwritten else {}),  # what the chat template left out
        "length_histogram": {  # documents by length in tokens, in ranges that double
            f"{low}-{2 * low - 1}": int(count) for low, count in zip(edges, histogram, strict=False) if count
        },
    }
