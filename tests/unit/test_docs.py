"""The pages agree with each other and with the code: links, commands, keys, figures, translations."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from ladle.cli import app
from ladle.recipe import recipe_schema
from tests.unit.test_schema import Yaml12

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
MEASURED = ("real-model.md", "evidence.md", "gpu.md")
"""Pages with tables of measurements."""


@pytest.fixture(scope="module")
def pages(repository: Path) -> dict[Path, str]:
    found = [*repository.glob("*.md"), *(repository / "docs").rglob("*.md"), *(repository / ".github").rglob("*.md")]
    assert len(found) >= 35
    return {path: path.read_text(encoding="utf-8") for path in found}


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_a_heading_that_exist(pages):
    broken = []
    for path, text in pages.items():
        for target in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))):
            name, _, anchor = target.partition("#")
            if target.startswith("https://"):
                continue
            file = (path.parent / name).resolve() if name else path
            if not file.exists():
                broken.append(f"{path.name}: {target}: there is no such file")
            elif anchor and anchor not in anchors(pages[file]):
                broken.append(f"{path.name}: {target}: there is no such heading")
    assert not broken, "\n".join(broken)


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each `ladle` command in a page's blocks and sentences."""
    blocks = "\n".join(content for language, content in FENCE.findall(text) if language in ("bash", "text"))
    for line in blocks.replace("\\\n", " ").splitlines():
        if found := re.match(r"\s*(?:\w+=\S+ )*(?:\.venv/bin/)?(ladle [a-z].*)", line):
            yield shlex.split(found[1].replace("$'", "'"), comments=True)
    for inline in re.findall(r"`(ladle [a-z][^`]*)`", FENCE.sub("", text)):
        yield shlex.split(re.sub(r"\[.*?\]|…|FILE\|DIR", "", inline))


def test_every_command_that_a_page_shows_exists_with_its_options(pages):
    program: Any = typer.main.get_command(app)
    wrong, seen = [], set()
    for path, text in pages.items():
        if path.name == "CHANGELOG.md":
            continue
        for _, name, *arguments in command_lines(text):
            seen.add(name)
            command = program.commands.get(name)
            options = (
                {option for one in command.params for option in (*one.opts, *one.secondary_opts)} if command else set()
            )
            wrong += [
                f"{path.name}: ladle {name}: {word}"
                for word in (["no such command"] if command is None else arguments)
                if command is None or (word.startswith("--") and word.partition("=")[0] not in options)
            ]
    assert not wrong, "\n".join(wrong)
    assert seen >= program.commands.keys(), "commands that no page shows"


def test_recipes_on_the_pages_have_keys_and_values_that_exist(pages):
    schema = recipe_schema()
    editor = jsonschema.Draft202012Validator(schema | {"required": []})
    faults, num_checked = [], 0
    for path, text in pages.items():
        for language, content in FENCE.findall(text):
            content = content.replace("{…}", "{}").replace("[…]", "[gsm8k]")
            tree = yaml.load(content, Yaml12) if language == "yaml" else None
            if isinstance(tree, dict) and tree.keys() <= schema["properties"].keys():
                num_checked += 1
                faults += [f"{path.name}: {one.json_path}: {one.message}" for one in editor.iter_errors(tree)]
    assert not faults, "\n".join(faults)
    assert num_checked >= 10


def test_every_file_of_the_repository_that_a_page_names_exists(pages, repository):
    missing = []
    for path, text in pages.items():
        if path.name in ("CHANGELOG.md", "from-the-reports.md"):  # which name files of the past, and of others
            continue
        for name in re.findall(r"(?<![\w./-])((?:src|tests|recipes|benchmarks|docs|examples)/[\w./-]*\w)", text):
            if not (repository / name).exists():
                missing.append(f"{path.name}: {name}")
    assert not missing, "\n".join(missing)


def test_tables_of_measurements_are_on_the_evidence_pages(pages):
    number = re.compile(r"[−+-]?\d[\d.,]* ?(%|s|h|MB|GB|MiB|×)?( .*)?")
    for path, text in pages.items():
        for line in FENCE.sub("", text).splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
            measured = [cell for cell in cells if number.fullmatch(cell)]
            assert len(measured) < 3 or path.name in MEASURED, f"{path.name}: {line}"


def test_every_page_is_in_the_menu_of_the_site(repository):
    menu = re.findall(r": (\S+\.md)$", (repository / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    there = [str(path.relative_to(repository / "docs")) for path in (repository / "docs").rglob("*.md")]
    assert sorted(menu) == sorted(there)


def test_the_figure_is_drawn_from_the_table(repository):
    made = runpy.run_path(str(repository / "docs" / "make_figure.py"))["figure"]()
    assert (repository / "docs/images/quickstart.svg").read_text(encoding="utf-8") == made, "run `make reference`"


def test_translations_keep_up(repository):
    tool = runpy.run_path(str(repository / "docs" / "translations.py"))
    for name, source in tool["PAGES"].items():
        translation, original = ((repository / one).read_text(encoding="utf-8") for one in (name, source))
        behind = tool["find_behind"](translation, original)
        assert not behind, f"{name}: translate, then `python docs/translations.py --stamp`: " + "; ".join(behind)


def test_a_change_of_the_original_is_noticed_by_section(repository):
    tool = runpy.run_path(str(repository / "docs" / "translations.py"))
    original = "# A\none\n## B\ntwo\n```bash\n# no heading\n```\n## C\nthree\n"
    translated = tool["stamp"]("# 甲\n## 乙\n```bash\n```\n## 丙\n", original, "a.md")
    assert tool["find_behind"](translated, original) == []
    changed = original.replace("two", "2").replace("## C", "## D").replace("# no", "# a")
    expected = ["'B' changed", "'D' is new", "'C' was removed", "its code blocks are not the original's"]
    assert tool["find_behind"](translated, changed) == expected
