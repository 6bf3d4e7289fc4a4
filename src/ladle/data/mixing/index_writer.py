"""Writes a split's index in one pass: segments as rows are packed, then the table of rows in a keyed order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ladle.data.mixing.permutation import permutation_key, permute
from ladle.data.store.index import ROW, ROWS_FILE, SEGMENTS_FILE

ROWS_AT_A_TIME = 2**20


@dataclass(frozen=True)
class SplitCounts:
    """What was written."""

    num_rows: int
    num_segments: int
    num_tokens: int


class IndexWriter:
    """Writes the index of one split."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.stream: BinaryIO = (folder / SEGMENTS_FILE).open("wb", buffering=2**20)
        self.counts: list[np.ndarray] = []
        self.num_segments = self.num_tokens = 0

    def write(self, segments: np.ndarray, counts: np.ndarray) -> None:
        """Append whole rows.

        Args:
            segments: (fragments,) of dtype SEGMENT, row by row.
            counts: (rows,) fragments of each row.
        """
        self.stream.write(segments.tobytes())
        self.counts.append(counts.astype("<u4"))
        self.num_segments += len(segments)
        self.num_tokens += int(segments["length"].sum(dtype=np.int64))

    def finish(self, seed: int) -> SplitCounts:
        """Shuffle the rows and write their table."""
        self.stream.close()
        counts = np.concatenate([np.empty(0, "<u4"), *self.counts])
        firsts = np.cumsum(counts, dtype="<u8") - counts
        key = permutation_key("rows", seed)
        with (self.folder / ROWS_FILE).open("wb") as stream:
            for start in range(0, len(counts), ROWS_AT_A_TIME):
                places = np.arange(start, min(start + ROWS_AT_A_TIME, len(counts)), dtype=np.uint64)
                chosen = permute(places, len(counts), key)
                rows = np.empty(len(places), ROW)
                rows["first"], rows["count"] = firsts[chosen], counts[chosen]
                stream.write(rows.tobytes())
        return SplitCounts(len(counts), self.num_segments, self.num_tokens)
