"""Reads a mixed dataset: rows for training, straight from the memory-mapped token shards.

Documents in a row are isolated by position_ids that start over and by a label of -100 on the first token of each;
there is no attention_mask, because transformers ignores reset positions when it is given one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ladle.artifacts.files import hash_bytes, hash_file
from ladle.data.store.index import ROWS_FILE, SEGMENTS_FILE, map_index
from ladle.data.store.shards import open_shard
from ladle.errors import UserError

MIXTURE_FILE = "mixture.json"
MIXTURE_FORMAT = 1
IGNORED_LABEL = -100


@dataclass(frozen=True)
class DocumentPart:
    """A stretch of a document in a row."""

    source: str
    document: int
    """Number of the row in the source's files, from 0."""
    offset: int
    """First token used of the document."""
    length: int


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
            raise UserError(
                f"{path} has no split {split!r} (it has {', '.join(self.mixture['splits'])})",
                "mix it with `validation:` set, or use train",
            )
        self.sequence_length: int = self.mixture["sequence_length"]
        self.vocab_size: int = self.mixture["vocab_size"]
        self.pad_id: int = self.mixture["pad_id"]

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.mixture["splits"][self.split]["rows"]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return row `index`: input_ids, position_ids and labels, each (sequence_length,) i8."""
        input_ids = np.full(self.sequence_length, self.pad_id, np.int64)
        position_ids = np.empty(self.sequence_length, np.int64)
        starts, filled = [], 0
        for shard, length, offset in self._segments(index).tolist():
            input_ids[filled : filled + length] = self._tokens(shard)[offset : offset + length]
            position_ids[filled : filled + length] = self._positions[:length]
            starts.append(filled)
            filled += length
        position_ids[filled:] = self._positions[: self.sequence_length - filled]
        labels = input_ids.copy()
        labels[starts] = IGNORED_LABEL
        labels[filled:] = IGNORED_LABEL
        return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}

    row = __getitem__

    def digest(self) -> str:
        """Return a hash of the split's content: its shards' names, which are hashes, and its index."""
        names = "".join(shard["file"] for shard in self.mixture["shards"])
        files = [self.path / self.split / name for name in (ROWS_FILE, SEGMENTS_FILE)]
        return hash_bytes((names + "".join(map(hash_file, files))).encode())

    def lengths_of_row(self, index: int) -> list[int]:
        """Return the tokens of each document part in a row; what they leave of the row is padding."""
        return self._segments(index)["length"].tolist()

    def documents_of_row(self, index: int) -> list[DocumentPart]:
        """Name the documents in a row."""
        return [self._document_at(*segment) for segment in self._segments(index).tolist()]

    def _segments(self, index: int) -> np.ndarray:
        rows, segments = self._index
        if not -len(rows) <= index < len(rows):
            raise IndexError(f"row {index} of {len(rows)}")
        first, count = rows[index].tolist()
        return segments[first : first + count]

    def _document_at(self, shard: int, length: int, offset: int) -> DocumentPart:
        ends = np.cumsum(open_shard(self._shard_path(shard)).lengths(), dtype=np.int64)
        number = int(np.searchsorted(ends, offset, "right"))
        start = int(ends[number - 1]) if number else 0
        source = self.mixture["shards"][shard]["source"]
        before = sum(other["rows"] for other in self.mixture["shards"][:shard] if other["source"] == source)
        return DocumentPart(source, before + number, offset - start, length)

    def _tokens(self, shard: int) -> np.ndarray:
        tokens = self._open_shards.get(shard)
        if tokens is None:
            tokens = self._open_shards[shard] = open_shard(self._shard_path(shard)).tokens()
        return tokens

    def _shard_path(self, shard: int) -> Path:
        return self.path / self.mixture["shards"][shard]["file"]

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        return map_index(self.path / self.split)

    @cached_property
    def _open_shards(self) -> dict[int, np.ndarray]:
        return {}

    @cached_property
    def _positions(self) -> np.ndarray:
        return np.arange(self.sequence_length)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out: another process maps the files itself."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_index", "_open_shards")}


def read_mixture(path: Path) -> dict[str, Any]:
    """Read an artifact's mixture.json.

    Raises:
        UserError: there is none, or another version of Ladle wrote it.
    """
    file = path / MIXTURE_FILE
    if not file.is_file():
        raise UserError(f"there is no mixed dataset at {path} (no {MIXTURE_FILE})", "make one with `ladle mix`")
    mixture = json.loads(file.read_text(encoding="utf-8"))
    if mixture.get("format") != MIXTURE_FORMAT:
        raise UserError(
            f"{path} has mixture format {mixture.get('format')}, and this Ladle reads {MIXTURE_FORMAT}", "mix it again"
        )
    return mixture
