"""The index of a split: which fragments of which token shards make up each row.

segments.bin  16 bytes a fragment: shard u4, length u4, offset of its first token in the shard u8; a row's stand
together rows.bin      12 bytes a row, in training order: its first fragment u8, number of fragments u4
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SEGMENT = np.dtype([("shard", "<u4"), ("length", "<u4"), ("offset", "<u8")])
ROW = np.dtype([("first", "<u8"), ("count", "<u4")])
SEGMENTS_FILE = "segments.bin"
ROWS_FILE = "rows.bin"


def map_index(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map the rows and the segments of a split, read-only."""
    return _map(folder / ROWS_FILE, ROW), _map(folder / SEGMENTS_FILE, SEGMENT)


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    # the plain-array view: indexing a np.memmap costs a Python call a slice
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)
