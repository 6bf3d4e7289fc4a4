"""The files that a host and its tools read agree with the project: workflow, version, citation."""

from __future__ import annotations

import re
import tomllib

import yaml


def test_the_workflow_does_what_ci_run_does(repository):
    script = (repository / ".ci" / "run").read_text(encoding="utf-8")
    (whole,) = re.findall(r"set -- (.+)", script)
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    prerequisites = dict(re.findall(r"^([\w-]+):(.*)$", makefile, re.MULTILINE))
    workflow = yaml.safe_load((repository / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    part = workflow["jobs"]["part"]
    in_parts = {target for group in part["strategy"]["matrix"]["make"] for target in group.split()}
    assert in_parts <= prerequisites.keys()
    assert part["steps"][-1]["run"] == ".ci/run ${{ matrix.make }}"
    for target in whole.split():
        halves = set(prerequisites[target].split()) if target == "test-all" else {target}
        assert halves <= in_parts, target


def test_version_and_authors_are_the_same_everywhere(repository):
    version = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert citation["version"] == version
    assert citation["authors"] == [{"name": "The Ladle developers"}]
    assert f"version = {{{version}}}" in readme
    assert f"## {version}\n" in (repository / "CHANGELOG.md").read_text(encoding="utf-8")


def test_forms_ask_for_what_the_command_line_prints(repository):
    from ladle.cli import app

    form = (repository / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    names = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback}
    asked = set(re.findall(r"`ladle ([a-z]+) ", form))
    assert asked == {"doctor", "show"}
    assert asked <= names
    for path in (repository / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
