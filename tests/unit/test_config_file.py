from __future__ import annotations

from pathlib import Path

import pytest

from ladle.config import Config, location
from ladle.config_file import ConfigFile, parse_value
from ladle.errors import UserError


class Leaf(Config):
    name: str = ""
    ratio: float = 1.0


class Tree(Config):
    seed: int = 1
    root: str | None = location(None)
    leaf: Leaf = Leaf()
    leaves: list[Leaf] = []
    named: dict[str, Leaf] = {}


def load(tmp_path: Path, text: str, *overrides: str) -> Tree:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    file = ConfigFile.read(path)
    file.override(list(overrides))
    return file.validate(Tree)


def fault(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E3", 1e3),
        ("7_500_000", 7_500_000),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("[a, 1]", ["a", 1]),
        ("a: b: c", "a: b: c"),
    ],
)
def test_values_are_read_as_people_mean_them(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "place", "nearest"),
    [
        ("sed: 1", "x.yaml:1", "'seed'"),
        ("seed: 1\nleaf:\n  ratoi: 2", "x.yaml:3", "'ratio'"),
        ("leaves:\n  - name: a\n  - nam: b", "x.yaml:3", "'name'"),
        ("named:\n  one:\n    ratios: 2", "x.yaml:3", "'ratio'"),
    ],
)
def test_an_unknown_key_names_the_nearest_one_and_its_line(tmp_path, text, place, nearest):
    message = fault(tmp_path, text)
    assert place in message
    assert f"did you mean {nearest}?" in message


def test_a_section_named_within_itself_is_told_to_leave_its_name_out(tmp_path):
    assert "keys are relative to 'leaf' here: leave its name out" in fault(tmp_path, "leaf: {leaf: {ratio: 2}}")


def test_a_wrong_value_names_key_value_and_line(tmp_path):
    message = fault(tmp_path, "seed: 1\nleaf:\n  ratio: lots")
    assert "leaf.ratio: 'lots'" in message
    assert "x.yaml:3" in message


def test_a_key_that_stands_twice_is_refused(tmp_path):
    assert "'seed' stands twice" in fault(tmp_path, "seed: 1\nseed: 2")


def test_overrides_reach_lists_by_index_and_by_name(tmp_path):
    text = "leaves:\n  - {name: web}\n  - {name: math}"
    tree = load(tmp_path, text, "leaves.math.ratio=0.25", "leaves.0.ratio=0.5", "leaf.name=new")
    assert [leaf.ratio for leaf in tree.leaves] == [0.5, 0.25]
    assert tree.leaf.name == "new"


def test_an_override_without_value_or_target_is_refused(tmp_path):
    assert "is not an override" in fault(tmp_path, "seed: 1", "seed")
    assert "names no element 'code'" in fault(tmp_path, "leaves:\n  - {name: web}", "leaves.code.ratio=1")
    assert "holds no keys" in fault(tmp_path, "seed: 1", "seed.a=1")


def test_a_required_value_is_asked_for_where_it_is_used(tmp_path):
    text = "root: null\nleaf:\n  name: ${root}/web"
    message = fault(tmp_path, text)
    assert "root is required" in message
    assert "root=VALUE" in message
    assert "x.yaml:3" in message
    assert load(tmp_path, text, "root=/data").leaf.name == "/data/web"


def test_a_missing_file_lists_its_neighbours(tmp_path):
    (tmp_path / "there.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match="there.yaml"):
        ConfigFile.read(tmp_path / "absent.yaml")


def test_broken_yaml_is_the_users_mistake(tmp_path):
    assert "not valid YAML" in fault(tmp_path, "seed: [1")


def test_dollars_and_braces_that_are_text_stay(tmp_path):
    assert (
        load(tmp_path, 'root: /d\nleaf:\n  name: "${root} costs $5 and \\\\boxed{}"').leaf.name
        == "/d costs $5 and \\boxed{}"
    )


def test_an_override_of_nothing_but_dots_is_refused(tmp_path):
    assert "is not an override" in fault(tmp_path, "seed: 1", ".=5")
