"""Members and the headers of their files: what is found, and what is refused as damaged or as something else."""

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
from ladle.soups.members import find_members, make_header, open_members, read_header

from .models import pack, random_tensors, write_member

SHARDS = (
    ["embed.weight", "head"],
    ["layers.0.mlp.weight", "layers.0.norm.weight", "layers.0.router_bias", "position_ids"],
)


def test_a_sharded_member_has_the_tensors_of_all_its_files(tmp_path: Path) -> None:
    folder = write_member(tmp_path / "a", random_tensors(1), shards=SHARDS)
    member = open_members([folder])[0]
    assert member.files["head"] == "model-00001-of-00002.safetensors"
    assert member.tensor("layers.0.norm.weight").shape == (7,)


def test_an_artifact_stands_for_the_model_inside_it(tmp_path: Path) -> None:
    write_member(tmp_path / "run" / "model", random_tensors(1))
    member = open_members([tmp_path / "run"])[0]
    assert (member.name, member.folder) == ("run", tmp_path / "run" / "model")


def test_members_of_one_name_are_numbered(tmp_path: Path) -> None:
    folders = [write_member(tmp_path / run / "model", random_tensors(1)) for run in ("a", "b", "a2")]
    folders.append(write_member(tmp_path / "other" / "a", random_tensors(1)))
    assert [member.name for member in open_members(folders)] == ["a#1", "b", "a2", "a#2"]


def test_a_folder_of_checkpoints_names_checkpoints_of_steps_alone(tmp_path: Path, caplog) -> None:
    steps = [write_member(tmp_path / f"checkpoint-{step}", random_tensors(1)) for step in (20, 100)]
    write_member(tmp_path / "checkpoint-best", random_tensors(1))
    (tmp_path / "runs").mkdir()
    assert find_members(str(tmp_path)) == tuple(steps)
    assert "checkpoint-best is not a checkpoint of a step" in caplog.text


def test_weight_files_that_are_not_read_are_said(tmp_path: Path, caplog) -> None:
    folder = write_member(tmp_path / "a", random_tensors(1), shards=SHARDS)
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"stale")
    open_members([folder])
    assert "model-00003-of-00003.safetensors is not read" in caplog.text
    (folder / "model.safetensors").write_bytes(pack(random_tensors(2)))
    assert list(open_members([folder])[0].headers) == ["model.safetensors"]
    assert "the weights are in model.safetensors" in caplog.text


def test_no_members_are_refused() -> None:
    with pytest.raises(UserError, match="at least one member"):
        open_members([])


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"found: notes\.txt"):
        open_members([tmp_path])
    with pytest.raises(UserError, match="there is no such folder"):
        open_members([tmp_path / "absent"])
    with pytest.raises(UserError, match="it is a file"):
        open_members([tmp_path / "notes.txt"])


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_torch_files_are_refused_with_the_command_that_converts_them(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=r"convert it with: python -c .*from_pretrained\('.*'.*save_pretrained"):
        open_members([tmp_path])


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="is an adapter"):
        open_members([tmp_path])


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    folder = write_member(tmp_path / "a", random_tensors(1), shards=SHARDS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002"):
        open_members([folder])


def test_an_index_that_contradicts_the_files_is_refused(tmp_path: Path) -> None:
    folder = write_member(tmp_path / "a", random_tensors(1), shards=SHARDS)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["head"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match="differ on head"):
        open_members([folder])
    index.write_text("[]")
    with pytest.raises(UserError, match="is not an index"):
        open_members([folder])
    content["weight_map"]["head"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lacks \.\./"):
        open_members([folder])


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(1)
    folder = write_member(tmp_path / "a", tensors, shards=SHARDS)
    (folder / "model-00002-of-00002.safetensors").write_bytes(
        pack({name: tensors[name] for name in (*SHARDS[1], "head")})
    )
    with pytest.raises(UserError, match="differ on head"):
        open_members([folder])


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
    loaded = load(make_header({"x": ("F32", (2, 2), 16), "y": ("I64", (1,), 8)}, None).raw + bytes(24))
    assert {name: (array.dtype, array.shape) for name, array in loaded.items()} == {
        "x": (np.dtype(np.float32), (2, 2)),
        "y": (np.dtype(np.int64), (1,)),
    }


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        pytest.param({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, id="overlap"),
        pytest.param({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, id="gap"),
        pytest.param({"a": entry(0, 8, [3])}, 8, id="larger than its bytes"),
        pytest.param({"a": entry(0, 8, [2])}, 7, id="file too short"),
        pytest.param({"a": entry(0, 8, [2])}, 9, id="file too long"),
        pytest.param({"a": entry(8, 0, [-2])}, 8, id="negative"),
        pytest.param({"a": entry(0, 4, [1], "F13")}, 4, id="dtype"),
        pytest.param({"a": {"dtype": "F32"}}, 0, id="no shape"),
        pytest.param({"a": 3}, 0, id="no entry"),
        pytest.param([1], 0, id="list"),
        pytest.param(b"{no json", 0, id="not JSON"),
        pytest.param(b"\xff\xfe{}", 0, id="not text"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, header: object, size: int) -> None:
    with pytest.raises(UserError, match="is not a complete safetensors file"):
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
    assert [start for start, _ in spans] == [len(header.raw), *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == len(raw)
