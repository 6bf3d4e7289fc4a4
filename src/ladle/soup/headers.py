"""The header of a safetensors file: which tensor stands where.

A file is 8 bytes of little-endian length, that many bytes of JSON, then the tensors' bytes
(https://huggingface.co/docs/safetensors, "Format"). The safetensors library does not tell where a tensor's bytes
begin, which streaming needs, so the header is read here. Any file whose tensors do not fill it exactly, from the
header to the end and without overlap, is refused: it is truncated, damaged, or not what it says.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ladle.artifacts.files import hash_bytes
from ladle.errors import UserError

BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of an element, by the dtype names of the format."""

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit; a larger length is noise read as a number."""

_REPAIR = "the file is damaged or incomplete: copy it again from its source, or use another checkpoint"


class Tensor(NamedTuple):
    """One tensor; start and stop are offsets into the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        """The product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Where the tensors of a file stand, in the order of their bytes, the file's metadata, and the blake3 of it all."""

    data_start: int
    size_bytes: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] | None
    digest: str


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Raises:
        UserError: the file is no safetensors file, or its tensors do not fill it exactly.
    """
    raw, size_bytes = _read_raw(path), path.stat().st_size
    try:
        header = _parse(raw)
    except ValueError as error:
        raise UserError(f"{path} is no sound safetensors file ({error})", _REPAIR) from error
    if header.size_bytes != size_bytes:
        raise UserError(f"{path} has {size_bytes:,} bytes where its header describes {header.size_bytes:,}", _REPAIR)
    return header


def read_header_bytes(path: Path) -> bytes:
    """Return the file up to its first tensor, as it is."""
    return _read_raw(path)


def encode_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    """Return the head of a file that holds these tensors (dtype, shape) one after the other."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape) in tensors.items():
        stop = start + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned, as the library does
    return struct.pack("<Q", len(text)) + text


def _read_raw(path: Path) -> bytes:
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) == 8 and 2 <= length <= MAX_HEADER_BYTES:
            text = file.read(length)
            if len(text) == length:
                return prefix + text
    raise UserError(f"{path} ends before its header does, or has none", _REPAIR)


@lru_cache(maxsize=32)
def _parse(raw: bytes) -> Header:
    """Parse a head; members of one run share theirs, and so the result."""
    entries = json.loads(raw[8:].decode("utf-8"), object_pairs_hook=_refuse_repeats)
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    tensors = {name: _parse_tensor(name, entry, len(raw)) for name, entry in entries.items()}
    in_order = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
    position = len(raw)
    for name, tensor in in_order.items():
        if tensor.start != position:
            raise ValueError(
                f"{name} {'overlaps the one before' if tensor.start < position else 'leaves a gap before it'}"
            )
        position = tensor.stop
    return Header(len(raw), position, in_order, metadata, hash_bytes(raw))


def _parse_tensor(name: str, entry: Any, data_start: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        bits = math.prod(shape) * BITS[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the entry of {name} cannot be read: {entry!r:.200}") from error
    if any(not isinstance(size, int) or size < 0 for size in (*shape, start, stop)) or bits != 8 * (stop - start):
        raise ValueError(f"{name} is {dtype} {list(shape)}, which does not fill bytes {start} to {stop}")
    return Tensor(dtype, shape, data_start + start, data_start + stop)


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return entries
