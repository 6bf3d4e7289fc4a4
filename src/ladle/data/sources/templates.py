"""Text made of a row's columns: `"{question}\\n{answer}"`, as in str.format; braces of its own are doubled."""

from __future__ import annotations

import string
from typing import Any

from ladle.errors import UserError


def columns_of(template: str, key: str) -> list[str]:
    """Return the columns a template names, in order of first use.

    Raises:
        UserError: it cannot be read as a template, or names no column.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise UserError(
            f"{key} is not a template: {template!r} ({error})", "double braces that are text: {{ }}"
        ) from error
    if not fields or not all(field.isidentifier() for field in fields):
        raise UserError(
            f"{key} is {template!r}, whose braces do not all hold a column",
            "write {column}, and braces that are text as {{ }}",
        )
    return list(dict.fromkeys(fields))


def fill(template: str, row: dict[str, Any], key: str) -> str:
    """Return the template with the row's values in it.

    Raises:
        UserError: the row lacks a column that the template names.
    """
    missing = [name for name in columns_of(template, key) if name not in row]
    if missing:
        raise UserError(f"there is no column {missing[0]!r} (there is {', '.join(row)})", f"mend {key}")
    return template.format_map(row)
