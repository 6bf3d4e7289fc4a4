"""A soup from folder to folder: the right bytes in any order and on any threads, every tensor accounted for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from ladle.errors import UserError
from ladle.soups import make
from ladle.soups.config import SoupConfig
from ladle.soups.make import average_blocks, recompute
from ladle.soups.mean import FLOATS, Averager
from ladle.soups.members import open_members, read_header
from ladle.soups.weights import make_coefficients
from ladle.stages import soup as stage

from .formats import to_bits
from .models import Tensors, pack, random_tensors, read_tree, write_member

SHARDS = (
    ["head", "position_ids"],
    ["embed.weight", "layers.0.mlp.weight"],
    ["layers.0.norm.weight", "layers.0.router_bias"],
)
WEIGHTS = "*.safetensors"


def make_members(folder: Path, count: int, dtype: str = "BF16", rows: int = 40, **options: Any) -> list[Path]:
    return [write_member(folder / f"m{j}", random_tensors(j, dtype, rows), **options) for j in range(count)]


def run(members: list[Path], out: Path, **settings: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    return stage.run(SoupConfig.model_validate(settings), {"members": members}, out)


def weights_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in read_tree(folder).items() if name.endswith(".safetensors")}


def expected_bits(members_dtype: str, count: int, **settings: Any) -> Tensors:
    coefficients = make_coefficients(SoupConfig.model_validate(settings), count)
    members = [random_tensors(j, members_dtype) for j in range(count)]
    expected = {}
    for name, (own, array) in members[0].items():
        if own in FLOATS:
            rows = [member[name][1].tobytes() for member in members]
            target = "F32" if settings.get("dtype") else own
            expected[name] = (
                target,
                Averager(coefficients).average(rows, [own] * count, target)[0].reshape(array.shape),
            )
        else:
            expected[name] = (own, array)
    return expected


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_file_is_byte_for_byte_the_mean(tmp_path: Path, dtype: str, count: int) -> None:
    run(make_members(tmp_path, count, dtype), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == pack(expected_bits(dtype, count))


@pytest.mark.parametrize("settings", [{"method": "linear"}, {"method": "wsm_cosine"}, {"dtype": "float32"}])
def test_methods_and_dtype_are_obeyed(tmp_path: Path, settings: dict[str, Any]) -> None:
    run(make_members(tmp_path, 5), tmp_path / "out", **settings)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == pack(expected_bits("BF16", 5, **settings))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == settings.get("dtype", "bfloat16")


def test_fp64_members_are_averaged_to_fp64(tmp_path: Path) -> None:
    run(make_members(tmp_path, 3, "F64"), tmp_path / "out")
    result = open_members([tmp_path / "out"])[0]
    assert result.tensor("head").dtype == "F64"
    assert recompute(tmp_path / "out", [tmp_path / f"m{j}" for j in (2, 0, 1)]) == []


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_bytes_do_not_depend_on_the_order_of_members_or_on_workers(tmp_path: Path, dtype: str) -> None:
    members = make_members(tmp_path, 7, dtype, rows=2000, shards=SHARDS)
    run(members, tmp_path / "reference")
    run(members, tmp_path / "workers", workers=2)
    assert read_tree(tmp_path / "workers") == read_tree(tmp_path / "reference")
    for number, order in enumerate(np.random.default_rng(0).permutation(7) for _ in range(3)):
        run([members[j] for j in order], tmp_path / f"order{number}")
        assert weights_of(tmp_path / f"order{number}") == weights_of(tmp_path / "reference")


def test_members_may_be_laid_out_differently_and_the_most_common_layout_wins_in_any_order(tmp_path: Path) -> None:
    members = make_members(tmp_path, 2, shards=SHARDS)
    members.append(write_member(tmp_path / "single", random_tensors(2)))
    reverse = dict(reversed(random_tensors(3).items()))
    members.append(write_member(tmp_path / "reverse", reverse))
    run(members, tmp_path / "out")
    run(members[::-1], tmp_path / "other")
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "other")
    assert sorted(weights_of(tmp_path / "out")) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    result, expected = open_members([tmp_path / "out"])[0], expected_bits("BF16", 4)
    for name, file in result.files.items():
        tensor = result.tensor(name)
        raw = (tmp_path / "out" / file).read_bytes()[tensor.start : tensor.stop]
        assert raw == expected[name][1].tobytes()
    info = json.loads((tmp_path / "out" / "merge_info.json").read_text())
    for member, folder in zip(info["members"], members, strict=True):
        for file, entry in member["files"].items():
            assert entry["blake3"] == blake3((folder / file).read_bytes()).hexdigest()


def test_the_record_accounts_for_every_tensor_and_file(tmp_path: Path) -> None:
    members = make_members(tmp_path, 3, shards=SHARDS)
    summary = run(members, tmp_path / "out")
    info = json.loads((tmp_path / "out" / "merge_info.json").read_text())
    assert info["tensors"]["in_each_member"] == {"m0": 6, "m1": 6, "m2": 6}
    assert (info["tensors"]["averaged"], info["tensors"]["equal_in_all"], info["tensors"]["matched"]) == (5, 1, 6)
    assert summary.counters["tensors_averaged"] + summary.counters["tensors_equal_in_all"] == 6
    assert [member["coefficient"] for member in info["members"]] == ["1/3"] * 3
    for member, folder in zip(info["members"], members, strict=True):
        assert {file: entry["blake3"] for file, entry in member["files"].items()} == {
            path.name: blake3(path.read_bytes()).hexdigest() for path in folder.glob(WEIGHTS)
        }
    assert {file: entry["blake3"] for file, entry in info["outputs"].items()} == {
        path.name: blake3(path.read_bytes()).hexdigest() for path in (tmp_path / "out").glob(WEIGHTS)
    }
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == open_members([tmp_path / "out"])[0].files


def test_nothing_in_the_result_names_a_place(tmp_path: Path) -> None:
    run(make_members(tmp_path, 2), tmp_path / "out")
    run(make_members(tmp_path / "elsewhere", 2), tmp_path / "moved")
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "moved")
    assert not any(str(tmp_path).encode() in content for content in read_tree(tmp_path / "out").values())
    assert sorted(read_tree(tmp_path / "out")) == ["config.json", "merge_info.json", "model.safetensors"]


def test_members_without_a_share_are_recorded_and_not_read(tmp_path: Path) -> None:
    members = make_members(tmp_path, 3)
    damaged = members[0] / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-6] + b"\xff" * 6)  # inside position_ids: a difference, were it read
    run(members, tmp_path / "out", method="last_n", last=2)
    info = json.loads((tmp_path / "out" / "merge_info.json").read_text())
    assert [member["coefficient"] for member in info["members"]] == ["0", "1/2", "1/2"]
    assert info["members"][0]["files"]["model.safetensors"]["blake3"] is None


def test_fp8_and_booleans_pass_through_when_equal(tmp_path: Path) -> None:
    extra = {"scale": ("F8_E4M3", np.arange(8, dtype=np.uint8)), "mask": ("BOOL", np.array([True, False]))}
    members = [write_member(tmp_path / f"m{j}", random_tensors(j) | extra) for j in range(2)]
    summary = run(members, tmp_path / "out")
    assert summary.counters["tensors_equal_in_all"] == 3
    result = open_members([tmp_path / "out"])[0].tensor("scale")
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert raw[result.start : result.stop] == bytes(range(8))


def test_tensors_may_be_empty_or_scalar(tmp_path: Path) -> None:
    tensors = {"nothing": ("BF16", np.zeros((0, 3), np.uint16)), "one": ("F32", to_bits(np.array(0.5), "F32"))}
    members = [write_member(tmp_path / f"m{j}", tensors) for j in range(2)]
    run(members, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == pack(tensors)


def test_numbers_may_stand_at_odd_places(tmp_path: Path) -> None:
    flags = {"flags": ("BOOL", np.array([True, False, True]))}
    members = [write_member(tmp_path / f"m{j}", flags | random_tensors(j, rows=900)) for j in range(3)]
    run(members, tmp_path / "out")
    assert open_members([tmp_path / "out"])[0].tensor("embed.weight").start % 2 == 1
    assert recompute(tmp_path / "out", members) == []
    result = (tmp_path / "out" / "model.safetensors").read_bytes()
    run([write_member(tmp_path / f"even{j}", random_tensors(j, rows=900)) for j in range(3)], tmp_path / "even")
    even = (tmp_path / "even" / "model.safetensors").read_bytes()
    size = len(even) - len(read_header(tmp_path / "even" / "model.safetensors").raw)
    assert result[-size:] == even[-size:]


def test_deepseek_v3_keeps_what_vllm_needs(tmp_path: Path) -> None:
    members = make_members(tmp_path, 2, config={"model_type": "deepseek_v3"})
    run(members, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")


def test_a_place_inside_a_member_is_refused(tmp_path: Path) -> None:
    members = make_members(tmp_path, 2)
    with pytest.raises(UserError, match="is inside .*m1, a member"):
        run(members, members[1] / "soup")


def test_a_member_named_twice_is_refused_by_whatever_name(tmp_path: Path) -> None:
    first, second = make_members(tmp_path, 2)
    (tmp_path / "link").symlink_to(first)
    with pytest.raises(UserError, match="a member is named twice: m0#2 and m0#1 are both"):
        run([first, second, tmp_path / "link"], tmp_path / "out")
    run([first, second, tmp_path / "link"], tmp_path / "out", allow_repeats=True)
    info = json.loads((tmp_path / "out" / "merge_info.json").read_text())
    assert info["waived"]["allow_repeats"]["count"] == 1
    assert recompute(tmp_path / "out", [first, second, tmp_path / "link"]) == []


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = make_members(tmp_path, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 100))
    with pytest.raises(UserError, match=" are free"):
        run(members, tmp_path / "out")
    run(members, tmp_path / "out", ignore_free_space=True)


@pytest.mark.parametrize("change", ["shrinks", "is rewritten"])
def test_a_member_that_changes_meanwhile_is_an_error(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = make_members(tmp_path, 2, rows=20_000)
    weights = members[1] / "model.safetensors"

    def change_after_the_first(*arguments: Any) -> Any:
        blocks = average_blocks(*arguments)
        yield next(blocks)
        if change == "shrinks":
            os.truncate(weights, 10_000)
        else:
            weights.write_bytes(weights.read_bytes())
        yield from blocks

    monkeypatch.setattr(make, "average_blocks", change_after_the_first)
    with pytest.raises(UserError, match=r"m1/model\.safetensors (became shorter|changed) while it was read"):
        run(members, tmp_path / "out")


def test_finished_files_are_kept_if_they_are_still_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = make_members(tmp_path, 3, shards=SHARDS)
    run(members, tmp_path / "reference")
    written: list[str] = []
    write_file = make._write_file

    def write_some(soup: Any, coefficients: Any, item: Any, path: Path) -> None:
        if len(written) == stop_after:
            raise KeyboardInterrupt
        written.append(item[0])
        write_file(soup, coefficients, item, path)

    monkeypatch.setattr(make, "_write_file", write_some)
    stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(members, tmp_path / "out")
    kept, damaged = written
    (path,) = (tmp_path / "out").rglob(damaged)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    stop_after = -1
    written.clear()
    run(members, tmp_path / "out")
    assert damaged in written
    assert kept not in written
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "reference")


def test_a_killed_soup_of_other_members_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = make_members(tmp_path, 3, shards=SHARDS)
    run(members[:2], tmp_path / "reference")

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make, "write_side_files", stop)
        with pytest.raises(KeyboardInterrupt):
            run(members, tmp_path / "out")
    run(members[:2], tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "reference")


def test_recompute_names_exactly_the_tensors_that_differ(tmp_path: Path) -> None:
    members = make_members(tmp_path, 3, rows=5000, shards=SHARDS)
    out = tmp_path / "out"
    run(members, out)
    assert recompute(out, members) == []
    result = open_members([out])[0]
    for name in ("embed.weight", "position_ids"):
        path, tensor = out / result.files[name], result.tensor(name)
        content = bytearray(path.read_bytes())
        content[(tensor.start + tensor.stop) // 2] ^= 1
        path.write_bytes(content)
    assert recompute(out, members) == ["embed.weight", "position_ids"]
    (out / result.files["layers.0.norm.weight"]).unlink()
    assert recompute(out, members) == ["embed.weight", "layers.0.norm.weight", "layers.0.router_bias", "position_ids"]
    assert recompute(out, [members[0], members[0], members[0]]) != []
    with pytest.raises(UserError, match="was made of 3 members, and 2 are given"):
        recompute(out, members[:2])
    with pytest.raises(UserError, match="is not a soup"):
        recompute(members[0], members)


def test_a_soup_of_one_member_says_that_it_is_a_copy(tmp_path, caplog):
    members = make_members(tmp_path, 1)
    run(members, tmp_path / "soup")
    assert "it has one member, and is a copy of it" in caplog.text
    assert weights_of(tmp_path / "soup") == weights_of(members[0])
