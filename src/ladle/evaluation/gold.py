"""Rules that read a text from an item's fields: the known answer, the reference solution, the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ladle.evaluation.benchmark import FieldRule


def read_whole(row: dict[str, Any], fields: Sequence[str]) -> str:
    """Return the first of the fields that is not empty, as text; nothing where all are."""
    return read_first(row, [FieldRule(field=name) for name in fields])


def read_first(row: dict[str, Any], rules: Sequence[FieldRule]) -> str:
    """Return what the first rule that finds anything finds; nothing where none does."""
    return next((text for rule in rules if (text := apply_rule(row, rule))), "")


def apply_rule(row: dict[str, Any], rule: FieldRule) -> str:
    """Return the text that a rule reads from a row, without spaces around it; nothing where there is none."""
    value = row.get(rule.field)
    if rule.rule == "first" and isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return ""
    text = _as_text(value)
    if rule.rule == "boxed":
        return last_boxed(text) or ""
    if rule.rule in ("before", "after"):
        before, marker, after = text.rpartition(rule.marker)
        if not marker:
            return ""
        return (before if rule.rule == "before" else after).strip()
    return text.strip()


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` whose braces balance, or None."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        content = _balanced(text, start + len("\\boxed{"))
        if content is not None:
            return content.strip()
        start = text.rfind("\\boxed{", 0, start)
    return None


def _balanced(text: str, start: int) -> str | None:
    depth = 1
    for position in range(start, len(text)):
        # An escaped brace is a character of the answer, as in a set's \{1, 2\}; a doubled backslash escapes nothing.
        if text[position] in "{}" and not _is_escaped(text, position):
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[start:position]
    return None


def _is_escaped(text: str, position: int) -> bool:
    backslashes = 0
    while position > 0 and text[position - 1] == "\\":
        backslashes += 1
        position -= 1
    return backslashes % 2 == 1


def _as_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # amc23 writes 27.0 for the integer 27
    return str(value)
