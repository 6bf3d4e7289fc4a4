"""Each difference between members is refused, and its waiver is obeyed and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ladle.errors import UserError
from ladle.soups.compare import open_soup
from ladle.soups.config import SoupConfig
from ladle.soups.members import open_members
from ladle.stages import soup as stage

from .formats import to_bits
from .models import random_tensors, write_member

Change = Callable[[dict[str, tuple[str, np.ndarray]]], None]


def drop(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    del tensors["head"]


def add(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    tensors["extra"] = ("F32", np.zeros(3, np.uint32))


def grow(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    tensors["head"] = ("BF16", np.zeros((4, 5), np.uint16))


def widen(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    tensors["head"] = ("F32", to_bits(np.full((3, 5), 0.1), "F32"))


def spoil(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    tensors["head"][1][1, 2] = 0x7FC0


def renumber(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    tensors["position_ids"] = ("I64", np.arange(6)[::-1].copy())


def soup_of(tmp_path: Path, change: Change, **settings: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Average a plain member and a changed one; return merge_info and the result's tensors, as bits."""
    plain, changed = random_tensors(1), random_tensors(2)
    change(changed)
    folders = [write_member(tmp_path / "plain", plain), write_member(tmp_path / "changed", changed)]
    (tmp_path / "out").mkdir()
    stage.run(SoupConfig(**settings), {"members": folders}, tmp_path / "out")
    info = json.loads((tmp_path / "out" / "merge_info.json").read_text())
    member = open_members([tmp_path / "out"])[0]
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    tensors = {}
    for name in member.files:
        tensor = member.tensor(name)
        size = {"BF16": np.uint16, "F32": np.uint32, "I64": np.int64}[tensor.dtype]
        tensors[name] = np.frombuffer(raw[tensor.start : tensor.stop], size).reshape(tensor.shape)
    return info, tensors


@pytest.mark.parametrize(
    ("change", "waiver", "problem"),
    [
        (drop, "allow_missing", r"changed lacks 1 tensors \(head\)"),
        (add, "allow_missing", r"plain lacks 1 tensors \(extra\)"),
        (grow, "allow_shapes", r"head has shapes \[\[3, 5\], \[4, 5\]\]"),
        (widen, "allow_dtypes", r"head has dtypes \['BF16', 'F32'\]"),
        (spoil, "allow_nonfinite", r"changed holds nan in head"),
        (renumber, "allow_unequal", "position_ids is not averaged, and differs between plain and changed"),
    ],
)
def test_a_difference_is_refused_and_can_be_waived(tmp_path: Path, change: Change, waiver: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        soup_of(tmp_path / "refused", change)
    assert f"{waiver}=true" in caught.value.fix
    assert not list((tmp_path / "refused" / "out").glob("*.safetensors"))
    info, _ = soup_of(tmp_path / "waived", change, **{waiver: True})
    assert info["config"][waiver]


def test_missing_tensors_are_kept_from_the_first_member(tmp_path: Path) -> None:
    info, tensors = soup_of(tmp_path, drop, allow_missing=True)
    np.testing.assert_array_equal(tensors["head"], random_tensors(1)["head"][1])
    counts = info["tensors"]
    assert (counts["copied_from_first"], counts["dropped"], counts["matched"]) == (["head"], [], 5)
    assert info["waived"]["allow_missing"]["count"] == 1


def test_extra_tensors_are_left_out(tmp_path: Path) -> None:
    info, tensors = soup_of(tmp_path, add, allow_missing=True)
    assert "extra" not in tensors
    assert info["tensors"]["dropped"] == ["extra"]


def test_tensors_of_another_shape_are_kept_from_the_first_member(tmp_path: Path) -> None:
    _, tensors = soup_of(tmp_path, grow, allow_shapes=True)
    np.testing.assert_array_equal(tensors["head"], random_tensors(1)["head"][1])


def test_dtypes_are_averaged_in_the_wider(tmp_path: Path) -> None:
    _, tensors = soup_of(tmp_path, widen, allow_dtypes=True)
    plain = (random_tensors(1)["head"][1].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    expected = ((plain + np.float32(0.1)) / 2).astype(np.float32)
    np.testing.assert_array_equal(tensors["head"].view(np.float32), expected)


def test_nan_goes_through_and_is_counted(tmp_path: Path) -> None:
    info, tensors = soup_of(tmp_path, spoil, allow_nonfinite=True)
    assert info["tensors"]["elements_not_finite"] == 1
    assert np.flatnonzero(tensors["head"].ravel() == 0x7FC0).tolist() == [7]


def test_unequal_integers_are_the_first_members_and_are_named(tmp_path: Path) -> None:
    info, tensors = soup_of(tmp_path, renumber, allow_unequal=True)
    np.testing.assert_array_equal(tensors["position_ids"], np.arange(6))
    assert info["tensors"]["unequal"] == ["position_ids"]


def two_members(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> list[Path]:
    return [
        write_member(tmp_path / name, random_tensors(1), config) for name, config in (("one", first), ("two", second))
    ]


@pytest.mark.parametrize(
    "change",
    [{"rms_norm_eps": 1e-5}, {"hidden_act": "gelu"}, {"rope_theta": 5e5}, {"num_attention_heads": 2}, {"head_dim": 8}],
)
def test_another_function_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {"rope_theta": 1e4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    folders = two_members(tmp_path, config, config | change)
    with pytest.raises(UserError, match=r"different functions: .* is .* in one and .* in two"):
        open_soup(folders, SoupConfig())
    assert open_soup(folders, SoupConfig(allow_config=True)).waived["allow_config"]["count"] == 1


def test_keys_that_do_not_change_the_function_may_differ(tmp_path: Path) -> None:
    first = {"torch_dtype": "bfloat16", "rope_theta": 1e4, "use_cache": True, "transformers_version": "4.40.0"}
    second = {"dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "_name_or_path": "x"}
    assert open_soup(two_members(tmp_path, first, second), SoupConfig()).waived == {}


MISTRAL = {"model_type": "mistral"}  # whose default window is 4096


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        (MISTRAL | {"sliding_window": None}, MISTRAL, "sliding_window is None in one and 4096 in two"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {}, "rope_parameters is .*linear"),
        ({"model_type": "unheard-of", "window": None}, {"model_type": "unheard-of"}, "window is None in one"),
    ],
)
def test_what_a_config_leaves_out_is_its_default(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], difference: str
) -> None:
    with pytest.raises(UserError, match=difference):
        open_soup(two_members(tmp_path, first, second), SoupConfig())


def test_configs_that_mean_the_same_may_be_spelled_differently(tmp_path: Path) -> None:
    spellings = [
        {"hidden_size": 4096, "num_attention_heads": 32},
        {"sliding_window": 4096, "tie_word_embeddings": False, "attention_dropout": 0.1, "use_cache": False},
        {"rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16", "attn_implementation": "eager"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "float32", "head_dim": None},
    ]
    folders = [
        write_member(tmp_path / str(number), random_tensors(1), MISTRAL | one) for number, one in enumerate(spellings)
    ]
    assert open_soup(folders, SoupConfig()).waived == {}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(("second", "dtype"), [("BF16", "bfloat16"), ("F32", "float32"), ("F64", "float64")])
def test_the_config_says_the_dtype_that_the_tensors_have(tmp_path: Path, key: str, second: str, dtype: str) -> None:
    folders = [write_member(tmp_path / "a", random_tensors(1), {key: "bfloat16"})]
    folders.append(write_member(tmp_path / "b", random_tensors(2, second)))
    (tmp_path / "out").mkdir()
    stage.run(SoupConfig(allow_dtypes=True), {"members": folders}, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {config[name] for name in ("dtype", "torch_dtype") if name in config} == {dtype}


def write_tokenizer(folder: Path, vocabulary: dict[str, int], **settings: Any) -> None:
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocabulary}, "padding": settings.get("padding")})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    folders = two_members(tmp_path, {}, {})
    write_tokenizer(folders[0], {"a": 0})
    write_tokenizer(folders[1], {"a": 1})
    with pytest.raises(UserError, match=r"tokenizer\.json differs between one and two"):
        open_soup(folders, SoupConfig())
    assert "allow_tokenizer" in open_soup(folders, SoupConfig(allow_tokenizer=True)).waived


def test_another_chat_template_is_refused(tmp_path: Path) -> None:
    folders = two_members(tmp_path, {}, {})
    write_tokenizer(folders[0], {"a": 0}, chat_template="x")
    write_tokenizer(folders[1], {"a": 0})
    (folders[1] / "chat_template.jinja").write_text("y")
    with pytest.raises(UserError, match="chat template default differs"):
        open_soup(folders, SoupConfig())
    (folders[1] / "chat_template.jinja").write_text("x")
    assert open_soup(folders, SoupConfig()).waived == {}


def test_named_chat_templates_are_the_same_in_the_config_and_in_files(tmp_path: Path) -> None:
    folders = two_members(tmp_path, {}, {})
    named = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "t"}]
    write_tokenizer(folders[0], {"a": 0})
    write_tokenizer(folders[1], {"a": 0}, chat_template=named)
    (folders[0] / "chat_template.jinja").write_text("x")
    (folders[0] / "additional_chat_templates").mkdir()
    (folders[0] / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    (tmp_path / "out").mkdir()
    stage.run(SoupConfig(), {"members": folders}, tmp_path / "out")
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").read_text() == "t"
    (folders[0] / "additional_chat_templates" / "tool_use.jinja").write_text("u")
    with pytest.raises(UserError, match="chat template tool_use differs between one and two"):
        open_soup(folders, SoupConfig())


def test_settings_of_a_tokenizer_and_its_absence_are_not_differences(tmp_path: Path) -> None:
    folders = two_members(tmp_path, {}, {})
    write_tokenizer(folders[1], {"a": 0}, padding="x", model_max_length=5, eos_token="</s>")
    third = write_member(tmp_path / "three", random_tensors(1))
    write_tokenizer(third, {"a": 0}, model_max_length=9, eos_token={"content": "</s>", "lstrip": False})
    (tmp_path / "out").mkdir()
    stage.run(SoupConfig(), {"members": [*folders, third]}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 5


def test_a_config_that_is_not_json_is_named(tmp_path: Path) -> None:
    folders = two_members(tmp_path, {}, {})
    (folders[1] / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"two/config\.json is not JSON"):
        open_soup(folders, SoupConfig())


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    folder = write_member(tmp_path / "a", random_tensors(1))
    with pytest.raises(UserError, match="at most 1024"):
        open_soup([folder] * 1025, SoupConfig())
