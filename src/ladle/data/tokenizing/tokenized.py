"""A source after tokenizing: its shards, and where each of its documents stands in them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from ladle.data.config import SourceConfig
from ladle.data.sources.documents import HARMLESS
from ladle.data.store.shards import TokenShard
from ladle.errors import UserError


@dataclass(frozen=True)
class TokenizedSource:
    """The documents of one source, numbered from 0 in the order of its files; a dropped row keeps its number and has
    length 0."""

    config: SourceConfig
    shards: tuple[TokenShard, ...]
    origins: tuple[Path, ...]
    """The file that each shard was made from."""
    first_shard: int
    """Number of its first shard among those of all sources."""

    @property
    def name(self) -> str:
        """The source's name."""
        return self.config.name

    @cached_property
    def first_documents(self) -> np.ndarray:
        """(shards + 1,) number of the first document of each shard, then their total."""
        return np.cumsum([0, *(shard.num_rows for shard in self.shards)], dtype=np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(documents,) u4 tokens of each document."""
        return np.concatenate([np.empty(0, "<u4"), *(shard.lengths() for shard in self.shards)])

    @cached_property
    def starts(self) -> np.ndarray:
        """(documents,) offset of each document's first token in its shard, as u4 where that is enough."""
        largest = max((shard.num_tokens for shard in self.shards), default=0)
        starts = np.empty(len(self.lengths), np.uint32 if largest < 2**32 else np.uint64)
        for first, last in pairwise(self.first_documents):
            lengths = self.lengths[first:last]
            starts[first:last] = np.cumsum(lengths, dtype=np.uint64) - lengths
        return starts

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(shard.num_tokens for shard in self.shards)

    @cached_property
    def dropped(self) -> dict[str, int]:
        """Rows that gave no document, by reason."""
        total: Counter[str] = Counter()
        for shard in self.shards:
            total.update(shard.dropped)
        return dict(sorted(total.items()))

    def shards_of(self, documents: np.ndarray) -> np.ndarray:
        """Return the shard number, among those of all sources, of each document."""
        return self.first_shard + np.searchsorted(self.first_documents, documents, "right") - 1

    def check(self, max_bad_fraction: float, vocab_size: int) -> None:
        """Refuse a source that cannot be trained on.

        Raises:
            UserError: no documents, too many unreadable rows, or token ids that the model does not have.
        """
        rows = int(self.first_documents[-1])
        seen = f"{rows:,} rows read" + "".join(f", {count:,} {reason}" for reason, count in self.dropped.items())
        if self.num_tokens == 0:
            raise UserError(
                f"source {self.name} (split {self.config.split}) holds no documents ({seen})",
                "check its `dataset` and `split`",
            )
        bad = sum(count for reason, count in self.dropped.items() if reason not in HARMLESS)
        if bad > max_bad_fraction * rows:
            allowing = _rounded_up(bad / rows)
            raise UserError(
                f"{bad:,} of the {rows:,} rows of source {self.name} are unusable ({seen}), such as {self._example()}",
                f"correct the data or the source's `format`, or allow it with mix.max_bad_fraction={allowing}",
            )
        largest = max(shard.max_token for shard in self.shards)
        if largest >= vocab_size:
            raise UserError(
                f"source {self.name} holds token id {largest} and the model's vocab_size is {vocab_size}",
                "mix with the tokenizer that belongs to the model",
            )

    def _example(self) -> str:
        """Name the first bad row by file and its number among the file's rows, from 1."""
        rows_before: Counter[Path] = Counter()
        for shard, origin in zip(self.shards, self.origins, strict=True):
            for row, reason in shard.examples:
                if reason not in HARMLESS:
                    return f"row {rows_before[origin] + row + 1} of {origin} ({reason})"
            rows_before[origin] += shard.num_rows
        return "rows further on"


def _rounded_up(fraction: float) -> str:
    """Write a fraction in two digits, never below its value."""
    step = 10.0 ** (math.floor(math.log10(fraction)) - 1)
    return f"{min(1.0, math.ceil(round(fraction / step, 6)) * step):.2g}"
