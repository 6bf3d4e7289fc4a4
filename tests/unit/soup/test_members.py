from __future__ import annotations

import json
from pathlib import Path

import pytest

from ladle.errors import UserError
from ladle.soup.members import open_members

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
    with pytest.raises(UserError, match="is no index"):
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
    with pytest.raises(UserError, match="has head in more than one file"):
        open_members([folder])
