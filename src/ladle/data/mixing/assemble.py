"""From drawn documents to the rows of a split: mixed across sources in keyed order, packed window by window, written
to the index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ladle.data.config import MixConfig
from ladle.data.mixing.index_writer import IndexWriter, SplitCounts
from ladle.data.mixing.pack import best_fit, split_long, wrap
from ladle.data.mixing.permutation import permutation_key, permute
from ladle.data.mixing.plan import Drawing
from ladle.data.store.index import SEGMENT
from ladle.data.tokenizing.tokenized import TokenizedSource
from ladle.log import progress


@dataclass(frozen=True)
class Drawn:
    """A source, and the documents of it that go into the split."""

    source: TokenizedSource
    usable: np.ndarray
    """(documents,) tokens that can be used of each."""
    drawing: Drawing


@dataclass(frozen=True)
class Packed:
    """Rows made of document fragments, row by row."""

    owners: np.ndarray
    """(fragments,) index of the document in its window."""
    offsets: np.ndarray
    """(fragments,) where in the document the fragment starts."""
    sizes: np.ndarray
    """(fragments,) tokens."""
    counts: np.ndarray
    """(rows,) fragments of each row."""


class Packer(Protocol):
    """Packs documents, given window by window."""

    def pack(self, lengths: np.ndarray) -> Packed:
        """Return the rows that are complete after this window."""
        ...

    def last_rows(self) -> np.ndarray:
        """Return the fragment counts of the rows that stayed open."""
        ...


def write_split(drawn: Sequence[Drawn], config: MixConfig, purpose: str, folder: Path) -> SplitCounts:
    """Pack the drawn documents of all sources and write the split's index.

    Args:
        drawn: the documents of each source.
        config: the mixture.
        purpose: name of the split; keys its order.
        folder: where the index goes; must not exist.
    """
    writer, packer = IndexWriter(folder), _make_packer(config)
    total = sum(one.drawing.num_documents for one in drawn)
    with progress(total=total, description=f"packing {purpose}", unit="documents") as bar:
        for documents in _windows(drawn, config, purpose):
            packed = packer.pack(documents["length"].astype(np.int64))
            segments = documents[packed.owners]
            segments["offset"] += packed.offsets.astype(np.uint64)
            segments["length"] = packed.sizes
            writer.write(segments, packed.counts)
            bar.advance(len(documents))
    writer.write(np.empty(0, SEGMENT), packer.last_rows())
    return writer.finish(config.seed)


def _windows(drawn: Sequence[Drawn], config: MixConfig, purpose: str) -> Iterator[np.ndarray]:
    """Yield whole documents, as segments, in the keyed order over all sources."""
    bounds = np.cumsum([0, *(one.drawing.num_documents for one in drawn)], dtype=np.uint64)
    total, key = int(bounds[-1]), permutation_key("order", config.seed, purpose)
    for start in range(0, total, config.packing_window):
        places = np.arange(start, min(start + config.packing_window, total), dtype=np.uint64)
        numbers = permute(places, total, key)
        owners = np.searchsorted(bounds, numbers, "right") - 1
        segments = np.empty(len(numbers), SEGMENT)
        for owner in np.unique(owners):
            here = owners == owner
            segments[here] = _locate(drawn[owner], numbers[here] - bounds[owner])
        yield segments


def _locate(drawn: Drawn, numbers: np.ndarray) -> np.ndarray:
    """Return where the drawn documents with these numbers stand in the token shards."""
    documents = drawn.drawing.documents(numbers)
    segments = np.empty(len(numbers), SEGMENT)
    segments["shard"] = drawn.source.shards_of(documents)
    segments["offset"] = drawn.source.starts[documents]
    segments["length"] = drawn.usable[documents]
    segments["length"][numbers == drawn.drawing.num_documents - 1] = drawn.drawing.last_length
    return segments


def _make_packer(config: MixConfig) -> Packer:
    packers = {"best_fit": _BestFit, "wrapped": _Wrapped, "none": _OneEach}
    return packers[config.packing](config.sequence_length)


class _BestFit:
    def __init__(self, row_length: int) -> None:
        self.row_length = row_length

    def pack(self, lengths: np.ndarray) -> Packed:
        owners, offsets, sizes = split_long(lengths, self.row_length)
        rows, num_rows = best_fit(sizes, self.row_length)
        order = np.argsort(rows, kind="stable")
        return Packed(owners[order], offsets[order], sizes[order], np.bincount(rows, minlength=num_rows))

    def last_rows(self) -> np.ndarray:
        return np.empty(0, np.int64)


class _Wrapped:
    """Its last row stays open until the next window fills it."""

    def __init__(self, row_length: int) -> None:
        self.row_length = row_length
        self.open_tokens = self.open_fragments = 0

    def pack(self, lengths: np.ndarray) -> Packed:
        owners, offsets, sizes, rows = wrap(lengths, self.row_length, self.open_tokens)
        counts = np.bincount(rows)
        counts[0] += self.open_fragments
        self.open_tokens = int(sizes[rows == len(counts) - 1].sum()) + (self.open_tokens if len(counts) == 1 else 0)
        self.open_fragments = int(counts[-1])
        return Packed(owners, offsets, sizes, counts[:-1])

    def last_rows(self) -> np.ndarray:
        return np.array([self.open_fragments][: self.open_fragments])


class _OneEach:
    def __init__(self, row_length: int) -> None:
        self.row_length = row_length

    def pack(self, lengths: np.ndarray) -> Packed:
        everything = np.arange(len(lengths))
        return Packed(
            everything, np.zeros_like(everything), np.minimum(lengths, self.row_length), np.ones_like(everything)
        )

    def last_rows(self) -> np.ndarray:
        return np.empty(0, np.int64)
