from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import model_validator

from ladle.config import Config, location
from ladle.config_file import ConfigFile, parse_value
from ladle.errors import UserError


class Leaf(Config):
    name: str = ""
    ratio: float = 1.0


class Sum(Config):
    first: int = 0
    second: int = 0

    @model_validator(mode="after")
    def _check(self) -> Sum:
        if self.first + self.second > 1:
            raise UserError("the sum is more than 1", "lower one")
        return self


class Tree(Config):
    seed: int = 1
    root: str | None = location(None)
    leaf: Leaf = Leaf()
    leaves: list[Leaf] = []
    named: dict[str, Leaf] = {}
    sum: Sum = Sum()


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
        ("2026-01-31", "2026-01-31"),
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


def test_a_section_named_within_itself_should_leave_its_name_out(tmp_path):
    assert "keys are relative to 'leaf' here: leave its name out" in fault(tmp_path, "leaf: {leaf: {ratio: 2}}")


def test_a_wrong_value_names_key_value_and_line(tmp_path):
    message = fault(tmp_path, "seed: 1\nleaf:\n  ratio: lots")
    assert "leaf.ratio: 'lots'" in message
    assert "x.yaml:3" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("leaf.ratoi=2", "unknown key 'leaf.ratoi': did you mean 'ratio'? (on the command line)"),
        ("leaf.ratio=lots", "leaf.ratio: 'lots': input should be a valid number, unable to parse string as a number"),
        ("leaf={ratio: lots}", "leaf.ratio: 'lots'"),
        ("leaves.web.ratio=lots", "leaves.0.ratio: 'lots'"),
        ("named.one.ratios=2", "unknown key 'named.one.ratios'"),
        ("leaf.name=${nowhere}", "nowhere is required and not set"),
    ],
)
def test_a_fault_of_an_override_is_on_the_command_line_and_not_in_the_file(tmp_path, override, message):
    text = "seed: 1\nleaf:\n  ratio: 2\nleaves:\n  - {name: web, ratio: 1}"
    seen = fault(tmp_path, text, override)
    assert message in seen
    assert seen.endswith("(on the command line)")


def test_a_fault_of_a_section_that_an_override_changed_names_both_places(tmp_path):
    assert "x.yaml:2 and the command line)" in fault(tmp_path, "seed: 1\nsum:\n  first: 1", "sum.second=1")
    assert "x.yaml:2)" in fault(tmp_path, "seed: 1\nsum: {first: 1, second: 1}", "seed=2")


def test_overrides_reach_lists_by_index_and_by_name(tmp_path):
    text = "leaves:\n  - {name: web}\n  - {name: math}"
    tree = load(tmp_path, text, "leaves.math.ratio=0.25", "leaves.0.ratio=0.5", "leaf.name=new")
    assert [leaf.ratio for leaf in tree.leaves] == [0.5, 0.25]
    assert tree.leaf.name == "new"


def test_an_override_without_value_or_target_is_refused(tmp_path):
    assert "is not an override" in fault(tmp_path, "seed: 1", ".=5")
    leaves = "leaves:\n  - {name: web}\n  - {ratio: 2}\n  - {name: math}"
    unnamed = fault(tmp_path, leaves, "leaves.code.ratio=1")
    assert unnamed.endswith("names no element 'code': use an index below 3 or one of web, math")
    assert fault(tmp_path, "leaves: [{}]", "leaves.a.ratio=1").endswith("use an index below 1")
    assert "holds no keys" in fault(tmp_path, "seed: 1", "seed.a=1")


def test_a_required_value_is_asked_for_where_it_is_used(tmp_path):
    text = "root: null\nleaf:\n  name: ${root}/web"
    message = fault(tmp_path, text)
    assert "root is required" in message
    assert "root=VALUE" in message
    assert "x.yaml:3" in message
    assert load(tmp_path, text, "root=/data").leaf.name == "/data/web"


def test_a_missing_file_or_a_folder_lists_the_recipes_there(tmp_path):
    for name in ("there.yaml", ".hidden.yaml", "other.txt"):
        (tmp_path / name).write_text("seed: 1")
    for path, problem in (("absent.yaml", "there is no recipe at"), ("", "is a folder, not a recipe")):
        with pytest.raises(UserError, match=problem) as caught:
            ConfigFile.read(tmp_path / path)
        assert caught.value.fix == f"name an existing one (here: {tmp_path}/there.yaml)"


def test_dollars_and_braces_that_are_text_stay(tmp_path):
    assert (
        load(tmp_path, 'root: /d\nleaf:\n  name: "${root} costs $5 and \\\\boxed{}"').leaf.name
        == "/d costs $5 and \\boxed{}"
    )


def test_merged_mappings(tmp_path: Path) -> None:
    text = "leaf: &one {name: a, ratio: 2}\nleaves:\n- {ratio: 3, <<: *one}\n- {<<: [{ratio: 4}, *one]}\n"
    assert load(tmp_path, text, "leaves.0.name=b") == Tree(
        leaf=Leaf(name="a", ratio=2), leaves=[Leaf(name="b", ratio=3), Leaf(name="a", ratio=4)]
    )


def test_faults_of_merged_mappings(tmp_path: Path) -> None:
    assert "x.yaml:1" in fault(tmp_path, "leaf: &one {ratio: high}\nleaves: [{<<: *one, name: a}]\n")
    shown = fault(tmp_path, "seed: &one 3\nleaf:\n  <<: *one\n")
    assert "`<<` stands before something that holds no keys" in shown
    assert "x.yaml:3" in shown


def test_a_number_that_is_none_is_bad_yaml_and_not_a_bug(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 0x_\n")
    with pytest.raises(UserError, match="recipe.yaml is not valid YAML"):
        ConfigFile.read(tmp_path / "recipe.yaml")
