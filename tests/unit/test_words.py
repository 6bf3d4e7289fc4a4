"""Docstrings, comments, messages and pages use the plain words of the field."""

from __future__ import annotations

import re
from pathlib import Path

PLAIN = {
    r"mend(s|ed|ing)?": "fix",
    r"reckon(s|ed|ing)?": "estimate, compute",
    r"lest": "unless, so that … not",
    r"alike": "same, both",
    r"likewise": "also",
    r"told": "given, shown, distinguished",
    r"gives? way to": "falls back to",
    r"(?<!there )is no (?!longer\b)": "is not a",
    r"(goes|went) on from": "resumes from, starts from",
    r"asked for": "requested",
    r"by its word|closed to us": "by what it says; without access",
}
"""A pattern to the words to say instead. `there is no X` is plain, and so is `no longer`."""
PLACES = ("src/ladle", "docs", "recipes", "examples", "benchmarks", ".github")


def test_code_and_pages_use_plain_words(repository: Path):
    pages = {path for place in PLACES for path in (repository / place).rglob("*")} | {*repository.glob("*.md")}
    assert repository / "README.md" in pages
    pattern = re.compile("|".join(rf"(?P<w{index}>\b(?:{word})\b)" for index, word in enumerate(PLAIN)))
    found = [
        f"{path.relative_to(repository)}:{number}: {match[0]!r}: say {list(PLAIN.values())[int(match.lastgroup[1:])]}"
        for path in sorted(pages)
        if path.suffix in (".py", ".md", ".html", ".yaml", ".yml", ".ipynb")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in pattern.finditer(line)
        if match.lastgroup is not None
    ]
    assert not found, "\n".join(found)
