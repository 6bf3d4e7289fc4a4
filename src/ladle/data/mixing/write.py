"""Writes what was chosen: the rows of each split, in keyed order over all sources, and mixture.json, which says what is
in them, source by source, and accounts for every token.

For each source: tokens in + repeated = train + validation + contaminated + unused + truncated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ladle.data.config import MixConfig
from ladle.data.contamination import Contamination
from ladle.data.encoders import Vocabulary
from ladle.data.mixing.choose import Selection, permutation_key, permute, total_tokens
from ladle.data.mixing.pack import pack
from ladle.data.store import MIXTURE_FORMAT, ROW, ROWS_FILE, SEGMENT, SEGMENTS_FILE
from ladle.errors import CheckFailed
from ladle.log import progress

ROWS_AT_A_TIME = 2**20


class SplitCounts(NamedTuple):
    """What was written of a split."""

    num_rows: int
    num_segments: int
    num_tokens: int

    def describe(self, row_length: int) -> dict[str, Any]:
        """Return the split's entry in mixture.json."""
        padding = self.num_rows * row_length - self.num_tokens
        return {
            "rows": self.num_rows,
            "tokens": self.num_tokens,
            "fragments": self.num_segments,
            "padding_tokens": padding,
            "padding_share": round(padding / (self.num_rows * row_length), 8) if self.num_rows else 0.0,
        }


def write_split(selections: Sequence[Selection], config: MixConfig, purpose: str, folder: Path) -> SplitCounts:
    """Pack the drawn documents of all sources and write the split's index.

    Args:
        selections: the documents of each source.
        config: the mixture.
        purpose: name of the split; keys its order.
        folder: where the index goes; must not exist.
    """
    folder.mkdir(parents=True)
    counts_of_windows: list[np.ndarray] = []
    num_segments = num_tokens = 0
    with (folder / SEGMENTS_FILE).open("wb", buffering=2**20) as stream:
        for segments, counts in pack(_windows(selections, config, purpose), config.packing, config.sequence_length):
            stream.write(segments.tobytes())
            counts_of_windows.append(counts.astype("<u4"))
            num_segments += len(segments)
            num_tokens += int(segments["length"].sum(dtype=np.int64))
    counts = np.concatenate([np.empty(0, "<u4"), *counts_of_windows])
    _write_rows(counts, config.seed, folder / ROWS_FILE)
    return SplitCounts(len(counts), num_segments, num_tokens)


def _write_rows(counts: np.ndarray, seed: int, path: Path) -> None:
    """Write the table of rows, shuffled."""
    firsts = np.cumsum(counts, dtype="<u8") - counts
    key = permutation_key("rows", seed)
    with path.open("wb") as stream:
        for start in range(0, len(counts), ROWS_AT_A_TIME):
            places = np.arange(start, min(start + ROWS_AT_A_TIME, len(counts)), dtype=np.uint64)
            chosen = permute(places, len(counts), key)
            rows = np.empty(len(places), ROW)
            rows["first"], rows["count"] = firsts[chosen], counts[chosen]
            stream.write(rows.tobytes())


def _windows(selections: Sequence[Selection], config: MixConfig, purpose: str) -> Iterator[np.ndarray]:
    """Yield whole documents, as segments, in the keyed order over all sources."""
    bounds = np.cumsum([0, *(one.drawing(purpose).num_documents for one in selections)], dtype=np.uint64)
    total, key = int(bounds[-1]), permutation_key("order", config.seed, purpose)
    with progress(total=total, description=f"packing {purpose}", unit="documents") as bar:
        for start in range(0, total, config.packing_window):
            places = np.arange(start, min(start + config.packing_window, total), dtype=np.uint64)
            numbers = permute(places, total, key)
            owners = np.searchsorted(bounds, numbers, "right") - 1
            segments = np.empty(len(numbers), SEGMENT)
            for owner in np.unique(owners):
                here = owners == owner
                segments[here] = _locate(selections[owner], purpose, numbers[here] - bounds[owner])
            yield segments
            bar.advance(len(numbers))


def _locate(selection: Selection, purpose: str, numbers: np.ndarray) -> np.ndarray:
    """Return where the drawn documents with these numbers are in the token shards."""
    source, drawing = selection.source, selection.drawing(purpose)
    documents = drawing.documents(numbers)
    segments = np.empty(len(numbers), SEGMENT)
    segments["shard"] = source.shards_of(documents)
    segments["offset"] = source.starts[documents]
    segments["length"] = selection.usable[documents]
    segments["length"][numbers == drawing.num_documents - 1] = drawing.last_length
    return segments


def describe_mixture(
    config: MixConfig,
    vocabulary: Vocabulary,
    selections: Sequence[Selection],
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
        "splits": {purpose: counts.describe(config.sequence_length) for purpose, counts in splits.items()},
        "shards": [
            {"file": f"tokens/{shard.path.name}", "source": name, "tokens": shard.num_tokens, "rows": shard.num_rows}
            for name, shard in ((one.source.name, shard) for one in selections for shard in one.source.shards)
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


def _describe_source(selection: Selection, share: Fraction) -> dict[str, Any]:
    source, train, validation, usable = selection.source, selection.train, selection.validation, selection.usable
    epoch_tokens = total_tokens(usable, train.candidates)
    repeated = max(0, train.num_tokens - epoch_tokens)
    kept = np.concatenate([train.candidates, selection.held_out])
    left_over = max(0, epoch_tokens - train.num_tokens)
    cut_off = total_tokens(usable, selection.held_out) - validation.num_tokens
    dropped = {
        "contaminated": total_tokens(source.lengths, selection.contaminated),
        "truncated": total_tokens(source.lengths, kept) - total_tokens(usable, kept),  # past a row's end
        "unused": left_over + cut_off,
    }
    coming = source.num_tokens + repeated
    going = train.num_tokens + validation.num_tokens + sum(dropped.values())
    if coming != going:
        raise CheckFailed(f"source {source.name}: {coming:,} tokens came in and {going:,} are accounted for")
    edges = [2**k for k in range(33)]
    histogram, _ = np.histogram(source.lengths, edges)
    return {
        "name": source.name,
        "ratio": float(share),
        "split": source.config.split,
        "tokens_in": source.num_tokens,
        "train_tokens": train.num_tokens,
        "train_documents": min(train.num_documents, len(train.candidates)),
        "epochs": round(train.num_tokens / epoch_tokens, 6) if train.num_tokens else 0.0,
        "repeated_tokens": repeated,
        "repeated_share": round(repeated / train.num_tokens, 6) if train.num_tokens else 0.0,
        "validation_tokens": validation.num_tokens,
        "validation_documents": validation.num_documents,
        "contaminated_documents": len(selection.contaminated),
        "rows_read": int(source.first_documents[-1]),
        "dropped_rows": source.dropped,
        "dropped_tokens": dropped,
        "length_histogram": {  # documents by length in tokens, in ranges that double
            f"{low}-{2 * low - 1}": int(count) for low, count in zip(edges, histogram, strict=False) if count
        },
    }
