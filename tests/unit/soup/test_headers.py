from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save_file

from ladle.errors import UserError
from ladle.soup.headers import encode_header, read_header

from .models import pack, random_tensors


def write(folder: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_it_finds_what_the_library_saved(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(5),
        "empty": np.zeros((0, 4), np.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    assert header.metadata == {"format": "pt"}
    assert header.size_bytes == len(raw)
    for name, array in tensors.items():
        tensor = header.tensors[name]
        assert (tensor.shape, raw[tensor.start : tensor.stop]) == (array.shape, array.tobytes())


def test_the_library_reads_what_it_encodes() -> None:
    loaded = load(encode_header({"x": ("F32", (2, 2)), "y": ("I64", (1,))}, None) + bytes(24))
    assert {name: (array.dtype, array.shape) for name, array in loaded.items()} == {
        "x": (np.dtype(np.float32), (2, 2)),
        "y": (np.dtype(np.int64), (1,)),
    }


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "size", "problem"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "b overlaps the one before"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, "b leaves a gap"),
        ({"a": entry(0, 8, [3])}, 8, "does not fill bytes 0 to 8"),
        ({"a": entry(0, 8, [2])}, 7, "where its header describes"),
        ({"a": entry(0, 8, [2])}, 9, "where its header describes"),
        ({"a": entry(8, 0, [-2])}, 8, "does not fill"),
        ({"a": entry(0, 4, [1], "F13")}, 4, "cannot be read"),
        ({"a": {"dtype": "F32"}}, 0, "cannot be read"),
        ({"a": 3}, 0, "cannot be read"),
        ([1], 0, "not a JSON object"),
        (b'{"a": 1, "a": 2}', 0, "stands twice"),
        (b"{no json", 0, "no sound safetensors file"),
        (b"\xff\xfe{}", 0, "no sound safetensors file"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, header: object, size: int, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_header(write(tmp_path, header, bytes(size)))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_file_cut_short_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = pack(random_tensors(1))
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(UserError):
        read_header(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_header_is_refused_or_still_fills_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(pack(random_tensors(1)))
    length = 8 + int.from_bytes(raw[:8], "little")
    for position in data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=3)):
        raw[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "model.safetensors"
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except UserError:
        return
    spans = [(tensor.start, tensor.stop) for tensor in header.tensors.values()]
    assert [start for start, _ in spans] == [header.data_start, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == len(raw)
