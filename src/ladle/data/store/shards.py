"""The token shard: the token ids of one piece's documents, end to end, with the length of each.

tokens    little-endian u2 or u4, from byte 0, so that a map of the file is an array of tokens
padding   to a multiple of 4
lengths   little-endian u4 a row of the piece, 0 for a row that gave no document
footer    JSON: dtype, tokens, rows, dropped (reason → rows), examples of dropped rows, largest id
its size  little-endian u8, then 8 bytes of magic
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ladle.artifacts.files import canonical_json
from ladle.errors import CheckFailed

MAGIC = b"LADLETK1"
TRAILER = struct.Struct("<Q8s")
MAX_EXAMPLES = 5


class ShardWriter:
    """Writes one shard, batch by batch; keeps only the lengths in memory."""

    def __init__(self, stream: BinaryIO, dtype: str) -> None:
        self.stream, self.dtype = stream, dtype
        self.lengths: list[np.ndarray] = []
        self.dropped: Counter[str] = Counter()
        self.examples: list[list[Any]] = []
        self.num_rows = self.num_tokens = self.max_token = 0

    def write(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append the tokens of some rows.

        Args:
            tokens: (sum of lengths,) ids, in row order.
            lengths: (rows,) tokens of each row.
        """
        self.stream.write(np.ascontiguousarray(tokens, self.dtype).data)
        self.lengths.append(lengths.astype("<u4", copy=False))
        self.num_rows += len(lengths)
        self.num_tokens += len(tokens)
        if len(tokens):
            self.max_token = max(self.max_token, int(tokens.max()))

    def note_dropped(self, row: int, reason: str) -> None:
        """Count a row, numbered within the piece, that gave no document; `write` has to be given a length of 0 for
        it."""
        self.dropped[reason] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append([row, reason])

    def finish(self) -> None:
        """Write everything after the tokens."""
        self.stream.write(b"\0" * (-self.stream.tell() % 4))
        for lengths in self.lengths:
            self.stream.write(lengths.tobytes())
        footer = {
            "dtype": self.dtype,
            "tokens": self.num_tokens,
            "rows": self.num_rows,
            "dropped": dict(sorted(self.dropped.items())),
            "examples": self.examples,
            "max_token": self.max_token,
        }
        encoded = canonical_json(footer).encode()
        self.stream.write(encoded + TRAILER.pack(len(encoded), MAGIC))


@dataclass(frozen=True)
class TokenShard:
    """A finished shard on disk."""

    path: Path
    dtype: str
    num_tokens: int
    num_rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    examples: list[list[Any]] = field(default_factory=list)
    """[row within the piece, reason] of the first dropped rows."""
    max_token: int = 0

    def tokens(self) -> np.ndarray:
        """Map the (num_tokens,) token ids; read-only."""
        return self._map(self.dtype, 0, self.num_tokens)

    def lengths(self) -> np.ndarray:
        """Map the (num_rows,) lengths in tokens, 0 for dropped rows; read-only."""
        start = self.num_tokens * np.dtype(self.dtype).itemsize
        return self._map("<u4", start + -start % 4, self.num_rows)

    def _map(self, dtype: str, offset: int, count: int) -> np.ndarray:
        if count == 0:
            return np.empty(0, dtype)
        # the plain-array view: indexing a np.memmap costs a Python call a slice
        return np.asarray(np.memmap(self.path, dtype, "r", offset, (count,)))


def open_shard(path: Path) -> TokenShard:
    """Read a shard's footer.

    Raises:
        CheckFailed: the file is not a whole token shard.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - TRAILER.size))
        trailer = stream.read()
        footer_size, magic = TRAILER.unpack(trailer) if len(trailer) == TRAILER.size else (0, b"")
        if magic != MAGIC:
            raise CheckFailed(f"{path} is not a whole token shard")
        stream.seek(size - TRAILER.size - footer_size)
        footer = json.loads(stream.read(footer_size))
    return TokenShard(
        path,
        footer["dtype"],
        footer["tokens"],
        footer["rows"],
        footer["dropped"],
        footer["examples"],
        footer["max_token"],
    )
