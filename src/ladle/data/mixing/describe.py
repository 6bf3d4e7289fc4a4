"""mixture.json: what is in a mixed dataset, source by source, and the proof that every token is accounted for.

For each source: tokens in + repeated = train + validation + contaminated + unused + truncated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ladle.artifacts.files import pretty_json
from ladle.data.config import MixConfig
from ladle.data.contamination.find import Contamination
from ladle.data.mixing.index_writer import SplitCounts
from ladle.data.mixing.selection import SourceSelection
from ladle.data.store.dataset import MIXTURE_FILE, MIXTURE_FORMAT
from ladle.data.vocabulary import Vocabulary
from ladle.errors import CheckFailed


def describe_mixture(
    config: MixConfig,
    vocabulary: Vocabulary,
    selections: Sequence[SourceSelection],
    splits: Mapping[str, SplitCounts],
    contamination: Contamination | None,
) -> dict[str, Any]:
    """Return the content of mixture.json.

    Raises:
        CheckFailed: the tokens written are not the tokens chosen, or tokens are missing from the account. That is a
            bug.
    """
    sources = [_describe_source(one, share) for one, share in zip(selections, config.shares(), strict=True)]
    for purpose, counts in splits.items():
        chosen = sum(source[f"{purpose}_tokens"] for source in sources)
        if chosen != counts.num_tokens:
            raise CheckFailed(f"{purpose} should have {chosen:,} tokens and the index holds {counts.num_tokens:,}")
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
        "splits": {purpose: _describe_split(counts, config.sequence_length) for purpose, counts in splits.items()},
        "shards": [shard for one in selections for shard in _describe_shards(one)],
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
    sources = mixture["sources"]
    reasons = sorted({reason for source in sources for reason in source["dropped_tokens"]})
    return {
        "tokens_in": sum(source["tokens_in"] for source in sources),
        "tokens_repeated": sum(source["repeated_tokens"] for source in sources),
        "tokens_out": sum(source["train_tokens"] + source["validation_tokens"] for source in sources),
        **{f"tokens_{reason}": sum(source["dropped_tokens"][reason] for source in sources) for reason in reasons},
        "rows_read": sum(source["rows_read"] for source in sources),
        "rows_dropped": sum(sum(source["dropped_rows"].values()) for source in sources),
    }


def write_mixture(mixture: Mapping[str, Any], out: Path) -> None:
    """Write mixture.json into the artifact."""
    (out / MIXTURE_FILE).write_text(pretty_json(mixture), encoding="utf-8")


def _describe_source(selection: SourceSelection, share: Fraction) -> dict[str, Any]:
    source, train, validation = selection.source, selection.train, selection.validation
    description = {
        "name": source.name,
        "ratio": float(share),
        "split": source.config.split,
        "tokens_in": source.num_tokens,
        "train_tokens": train.num_tokens,
        "train_documents": min(train.num_documents, len(train.candidates)),
        "epochs": round(train.num_tokens / selection.epoch_tokens, 6) if train.num_tokens else 0.0,
        "repeated_tokens": selection.repeated_tokens,
        "repeated_share": round(selection.repeated_tokens / train.num_tokens, 6) if train.num_tokens else 0.0,
        "validation_tokens": validation.num_tokens,
        "validation_documents": validation.num_documents,
        "contaminated_documents": len(selection.contaminated),
        "rows_read": int(source.first_documents[-1]),
        "dropped_rows": source.dropped,
        "dropped_tokens": {
            "contaminated": selection.contaminated_tokens,
            "truncated": selection.truncated_tokens,
            "unused": selection.unused_tokens,
        },
        "length_histogram": _histogram(source.lengths),
    }
    _require_account(description)
    return description


def _describe_shards(selection: SourceSelection) -> list[dict[str, Any]]:
    return [
        {
            "file": f"tokens/{shard.path.name}",
            "source": selection.source.name,
            "tokens": shard.num_tokens,
            "rows": shard.num_rows,
        }
        for shard in selection.source.shards
    ]


def _require_account(source: Mapping[str, Any]) -> None:
    coming = source["tokens_in"] + source["repeated_tokens"]
    going = source["train_tokens"] + source["validation_tokens"] + sum(source["dropped_tokens"].values())
    if coming != going:
        raise CheckFailed(f"source {source['name']}: {coming:,} tokens came in and {going:,} are accounted for")


def _describe_split(counts: SplitCounts, row_length: int) -> dict[str, Any]:
    padding = counts.num_rows * row_length - counts.num_tokens
    return {
        "rows": counts.num_rows,
        "tokens": counts.num_tokens,
        "fragments": counts.num_segments,
        "padding_tokens": padding,
        "padding_share": round(padding / (counts.num_rows * row_length), 8) if counts.num_rows else 0.0,
    }


def _histogram(lengths: np.ndarray) -> dict[str, int]:
    """Return the number of documents by length in tokens, in ranges that double: `64-127` and so on."""
    edges = [2**k for k in range(33)]
    counts, _ = np.histogram(lengths, edges)
    return {f"{low}-{2 * low - 1}": int(count) for low, count in zip(edges, counts, strict=False) if count}
