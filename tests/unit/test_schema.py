"""The schema that editors check recipes by, and the page of every key that is made of it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ladle.recipe import recipe_schema

SCHEMA_LINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")
OTHERS = (
    "accelerate",
    "slurm",
    "openseek/init.yaml",
    "templates/slurm.yaml",
    "quickstart.yaml",
)  # not recipes, but the last


def recipes(repository: Path) -> list[Path]:
    folder = repository / "recipes"
    found = [path for path in folder.rglob("*.yaml") if not str(path.relative_to(folder)).startswith(OTHERS)]
    assert len(found) >= 18
    return found


class Yaml12(yaml.SafeLoader):
    """Plain words as editors read them: by YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}


for kind, pattern in {
    "null": r"null|~|",
    "bool": r"true|false",
    "int": r"[-+]?\d+",
    "float": r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?",
}.items():
    Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^({pattern})$"), None)


@pytest.fixture(scope="module")
def editor() -> jsonschema.Draft202012Validator:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_schema_and_reference_are_those_of_the_code(repository):
    stored = (repository / "recipes" / "schema.json").read_text(encoding="utf-8")
    assert json.loads(stored) == recipe_schema(), "run `make reference`"
    made = runpy.run_path(str(repository / "docs" / "make_reference.py"))["reference"]()
    assert (repository / "docs" / "reference.md").read_text(encoding="utf-8") == made, "run `make reference`"


def test_every_key_has_a_description_of_its_own_or_its_sections():
    schema = recipe_schema()
    sections = schema["$defs"] | {"Recipe": schema}
    keys = [(name, key, field) for name, one in sections.items() for key, field in one["properties"].items()]
    assert len(keys) >= 350

    def is_described(field: dict[str, Any]) -> bool:
        inside = re.findall(r"#/\$defs/(\w+)", json.dumps(field))
        return bool(field.get("description") or (inside and sections[inside[0]].get("description")))

    assert [f"{name}.{key}" for name, key, field in keys if not is_described(field)] == []


def test_editors_find_the_schema_and_no_fault_in_the_recipes(repository, editor):
    for path in recipes(repository):
        text = path.read_text(encoding="utf-8")
        line = SCHEMA_LINE.match(text)
        assert line is not None, path
        assert (path.parent / line[1]).resolve() == repository / "recipes" / "schema.json", path
        faults = [
            f"{path}: {fault.json_path}: {fault.message}" for fault in editor.iter_errors(yaml.load(text, Yaml12))
        ]
        assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("section", "value", "is_fine"),
    [
        ("seed", "20_000", True),
        ("seed", "${data_root}", True),
        ("seed", "twenty", False),
        ("sede", 1, False),
        ("kto", {"data": ["rollouts"], "beta": 0}, False),
        ("kto", {"data": ["rollouts"], "arms": {"strong": {"beta": 1}}}, True),
        ("evaluate", [{"models": ["base"], "benchmarks": ["gsm8k", {"name": "mine"}]}], True),
        ("pretrain", {"distributed": "dpp"}, False),
    ],
)
def test_editors_mark_what_is_wrong_and_nothing_else(editor, section, value, is_fine):
    assert editor.is_valid({"name": "t", section: value}) == is_fine
