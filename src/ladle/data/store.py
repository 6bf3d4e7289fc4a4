"""The mixed dataset on disk: token shards, the index over them, and its rows for training, mapped straight from both.

A token shard holds the ids of one piece's documents, end to end, with the length of each:
    tokens    little-endian u2 or u4, from byte 0, so that a map of the file is an array of tokens
    padding   to a multiple of 4
    lengths   little-endian u4 a row of the piece, 0 for a row that gave no document
    footer    JSON: dtype, tokens, rows, dropped (reason → rows), examples of dropped rows, largest id; and where the
              chat template left something out, unwritten (what → rows)
    its size  little-endian u8, then 8 bytes of magic

The index of a split says which fragments of which shards make up each row:
    segments.bin  16 bytes a fragment: shard u4, length u4, offset of its first token in the shard u8; those of a row
                  are together
    rows.bin      12 bytes a row, in training order: its first fragment u8, number of fragments u4

Documents in a row are isolated by position_ids that start over and by a label of -100 on the first token of each;
there is no attention_mask, because transformers ignores reset positions when it is given one.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ladle.artifacts.files import canonical_json, hash_bytes, hash_file
from ladle.errors import CheckFailed, UserError

MIXTURE_FILE = "mixture.json"
MIXTURE_FORMAT = 1
IGNORED_LABEL = -100
SEGMENT = np.dtype([("shard", "<u4"), ("length", "<u4"), ("offset", "<u8")])
ROW = np.dtype([("first", "<u8"), ("count", "<u4")])
SEGMENTS_FILE, ROWS_FILE = "segments.bin", "rows.bin"
_MAGIC = b"LADLETK1"
_TRAILER = struct.Struct("<Q8s")
_FOOTER = ("dtype", "tokens", "rows", "dropped", "examples", "max_token")
_MAX_EXAMPLES = 5


class ShardWriter:
    """Writes one shard, batch by batch; keeps only the lengths in memory."""

    def __init__(self, stream: BinaryIO, dtype: str) -> None:
        self.stream, self.dtype = stream, dtype
        self.lengths: list[np.ndarray] = []
        self.dropped: Counter[str] = Counter()
        self.unwritten: Counter[str] = Counter()
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
        self.max_token = max(self.max_token, int(tokens.max(initial=0)))

    def note_dropped(self, row: int, reason: str) -> None:
        """Count a row, numbered within the piece, that gave no document; `write` has to be given a length of 0 for
        it."""
        self.dropped[reason] += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append([row, reason])

    def finish(self) -> None:
        """Write everything after the tokens."""
        self.stream.write(b"\0" * (-self.stream.tell() % 4))
        for lengths in self.lengths:
            self.stream.write(lengths.tobytes())
        footer = (self.dtype, self.num_tokens, self.num_rows, self.dropped, self.examples, self.max_token)
        fields = dict(zip(_FOOTER, footer, strict=True)) | ({"unwritten": self.unwritten} if self.unwritten else {})
        encoded = canonical_json(fields).encode()
        self.stream.write(encoded + _TRAILER.pack(len(encoded), _MAGIC))


@dataclass(frozen=True)
class TokenShard:
    """A finished shard on disk.

    Attributes:
        path: the file.
        dtype: of its tokens.
        num_tokens: of all rows.
        num_rows: rows of the piece, dropped ones counted.
        dropped: how many gave no document, by reason.
        examples: [row within the piece, reason] of the first of them.
        max_token: the largest id.
        unwritten: in how many rows the chat template left out which key of a turn, or `tools`.
    """

    path: Path
    dtype: str
    num_tokens: int
    num_rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    examples: list[list[Any]] = field(default_factory=list)
    max_token: int = 0
    unwritten: dict[str, int] = field(default_factory=dict)

    def tokens(self) -> np.ndarray:
        """Map the (num_tokens,) token ids; read-only."""
        return _map(self.path, self.dtype, 0, self.num_tokens)

    def lengths(self) -> np.ndarray:
        """Map the (num_rows,) lengths in tokens, 0 for dropped rows; read-only."""
        start = self.num_tokens * np.dtype(self.dtype).itemsize
        return _map(self.path, "<u4", start + -start % 4, self.num_rows)


def open_shard(path: Path) -> TokenShard:
    """Read a shard's footer.

    Raises:
        CheckFailed: the file is not a whole token shard.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _TRAILER.size))
        trailer = stream.read()
        footer_size, magic = _TRAILER.unpack(trailer) if len(trailer) == _TRAILER.size else (0, b"")
        if magic != _MAGIC:
            raise CheckFailed(f"{path} is not a whole token shard")
        stream.seek(size - _TRAILER.size - footer_size)
        footer = json.loads(stream.read(footer_size))
    return TokenShard(path, *(footer[name] for name in _FOOTER), unwritten=footer.get("unwritten", {}))


def _map(path: Path, dtype: str | np.dtype, offset: int, count: int) -> np.ndarray:
    # the plain-array view: indexing a np.memmap costs a Python call a slice
    return np.asarray(np.memmap(path, dtype, "r", offset, (count,))) if count else np.empty(0, dtype)


class MixedDataset:
    """One split of a mixed dataset, as a map-style dataset; opening it reads only its description.

    Args:
        path: the artifact of the mix stage.
        split: `train` or `validation`.

    Raises:
        UserError: no mixed dataset there, or it has no such split.
    """

    def __init__(self, path: Path | str, split: str = "train") -> None:
        self.path, self.split = Path(path), split
        self.mixture = read_mixture(self.path)
        if split not in self.mixture["splits"]:
            problem = f"{path} has no split {split!r} (it has {', '.join(self.mixture['splits'])})"
            raise UserError(problem, "mix it with `validation:` set, or use train")
        self.sequence_length: int = self.mixture["sequence_length"]
        self.vocab_size: int = self.mixture["vocab_size"]
        self.pad_id: int = self.mixture["pad_id"]
        self._open_shards: dict[int, np.ndarray] = {}
        self._open_masks: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.mixture["splits"][self.split]["rows"]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return row `index`: input_ids, position_ids and labels, each (sequence_length,) i8."""
        input_ids = np.full(self.sequence_length, self.pad_id, np.int64)
        position_ids = np.empty(self.sequence_length, np.int64)
        labels = np.full(self.sequence_length, IGNORED_LABEL, np.int64)
        filled = 0
        for shard, length, offset in self._segments(index).tolist():
            input_ids[filled : filled + length] = self._tokens(shard)[offset : offset + length]
            position_ids[filled : filled + length] = np.arange(length)
            trained = labels[filled + 1 : filled + length]
            trained[:] = input_ids[filled + 1 : filled + length]
            if (mask := self._mask(shard)) is not None:
                trained[~mask[offset + 1 : offset + length]] = IGNORED_LABEL
            filled += length
        position_ids[filled:] = np.arange(self.sequence_length - filled)
        return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}

    def digest(self) -> str:
        """Return a hash of the split's content: its shards' names, which are hashes, and its index."""
        names = "".join(shard["file"] for shard in self.mixture["shards"])
        files = [self.path / self.split / name for name in (ROWS_FILE, SEGMENTS_FILE)]
        return hash_bytes((names + "".join(map(hash_file, files))).encode())

    def lengths_of_row(self, index: int) -> list[int]:
        """Return the tokens of each document part in a row; what they leave of the row is padding."""
        return self._segments(index)["length"].tolist()

    def _segments(self, index: int) -> np.ndarray:
        rows, segments = self._index
        if not -len(rows) <= index < len(rows):
            raise IndexError(f"row {index} of {len(rows)}")
        first, count = rows[index].tolist()
        return segments[first : first + count]

    def _tokens(self, shard: int) -> np.ndarray:
        if shard not in self._open_shards:
            self._open_shards[shard] = open_shard(self.path / self.mixture["shards"][shard]["file"]).tokens()
        return self._open_shards[shard]

    def _mask(self, shard: int) -> np.ndarray | None:
        """Map which of a shard's tokens are trained on, bool; None where all are."""
        name: str | None = self.mixture["shards"][shard].get("mask")
        if name is None:
            return None
        if name not in self._open_masks:
            self._open_masks[name] = _map(self.path / name, "?", 0, self.mixture["shards"][shard]["tokens"])
        return self._open_masks[name]

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        files = ((self.path / self.split / ROWS_FILE, ROW), (self.path / self.split / SEGMENTS_FILE, SEGMENT))
        rows, segments = (_map(file, dtype, 0, file.stat().st_size // dtype.itemsize) for file, dtype in files)
        return rows, segments

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out: another process maps the files itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_index"} | {
            "_open_shards": {},
            "_open_masks": {},
        }


def read_mixture(path: Path) -> dict[str, Any]:
    """Read an artifact's mixture.json.

    Raises:
        UserError: there is none, or another version of Ladle wrote it.
    """
    file = path / MIXTURE_FILE
    if not file.is_file():
        raise UserError(f"there is no mixed dataset at {path} (no {MIXTURE_FILE})", "make one with `ladle mix`")
    mixture = json.loads(file.read_text(encoding="utf-8"))
    if (found := mixture.get("format")) != MIXTURE_FORMAT:
        raise UserError(f"{path} has mixture format {found}, and this Ladle reads {MIXTURE_FORMAT}", "mix it again")
    return mixture
