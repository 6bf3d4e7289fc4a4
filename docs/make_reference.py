"""Write docs/reference.md, every key of a recipe, from the descriptions that the code and recipes/schema.json have.

python docs/make_reference.py > docs/reference.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from ladle.recipe import recipe_schema

HEAD = """# Every key of a recipe

<!-- written by docs/make_reference.py (`make reference`) from the descriptions in the code: change them there -->

`ladle schema` prints the same for editors. With a language server for YAML, which VS Code, Neovim and Emacs have as an
extension, the first line of a recipe brings completion, descriptions, and a mark on what is wrong:

```yaml
# yaml-language-server: $schema=schema.json
```

`NAME` stands for a name of your own, `[]` for an element of a list. Keys that are *required* have no default; the ones
that are *unset* may be left out.
"""
REFERENCE = re.compile(r"#/\$defs/(\w+)")


def reference() -> str:
    """Return the page: a part for each section of a recipe, in the order in which a recipe reaches them."""
    schema = recipe_schema()
    sections = schema["$defs"] | {"Recipe": schema}
    places = list(visit("Recipe", "", sections))
    page, headings = HEAD, {}
    for name, section in sections.items():
        shortest = min((path for found, path in places if found == name), key=lambda path: path.count("."))
        kind = section["properties"].get("kind", {}).get("const")
        headings[name] = (
            shortest,
            (f"`{shortest}`" if shortest else "The recipe") + (f", `kind: {kind}`" if kind else ""),
        )
    for name, path in places:
        if path == headings[name][0]:
            others = [place for found, place in places if found == name and place != path]
            page += write_section(
                headings[name][1], others, sections, name, {one: headings[one][1] for one in headings}
            )
    return page


def visit(name: str, path: str, sections: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the section `name` and each one below it, with its path in a recipe."""
    yield name, path
    for key, field in sections[name]["properties"].items():
        many = ".NAME" if "patternProperties" in field else "[]" if field.get("type") == "array" else ""
        for child in dict.fromkeys(REFERENCE.findall(json.dumps(field))):
            yield from visit(child, f"{path}.{key}{many}".lstrip("."), sections)


def write_section(
    heading: str, others: list[str], sections: dict[str, Any], name: str, headings: dict[str, str]
) -> str:
    """Return a part of the page: what the section is, where else it may be, and a table of its keys."""
    section = sections[name]
    text = f"\n## {heading}\n\n{section['description']}\n"
    if others:
        text += f"\nAlso {', '.join(f'`{place}`' for place in others)}.\n"
    if section["additionalProperties"] is True:
        return text + f"\n{', '.join(f'`{key}`' for key in section['properties'])}.\n"
    text += "\n| key | value | default | meaning |\n|---|---|---|---|\n"
    for key, field in section["properties"].items():
        described = field if "description" in field else sections[REFERENCE.findall(json.dumps(field))[0]]
        meaning = " ".join(described["description"].partition("\n\n")[0].split()).replace("|", "\\|")
        text += (
            f"| `{key}` | {describe_type(field, headings)} | {describe_default(key, field, section)} | {meaning} |\n"
        )
    return text


def describe_type(field: dict[str, Any], headings: dict[str, str]) -> str:
    """Return what a value may be, in words, with a link where it is a section."""
    match field:
        case {"$ref": target}:
            heading = headings[target.rpartition("/")[2]].lower().replace(" ", "-")
            return f"[section](#{re.sub(r'[^a-z0-9_-]', '', heading)})"
        case {"const": value}:
            return f"`{json.dumps(value)}`".replace('"', "")
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"anyOf": options} | {"oneOf": options}:
            return " or ".join(
                dict.fromkeys(describe_type(one, headings) for one in options if one != {"type": "null"})
            )
        case {"type": "array"}:
            return f"list: {describe_type(field['items'], headings)}"
        case {"patternProperties": values}:
            return f"by name: {describe_type(next(iter(values.values())), headings)}"
        case {"type": ["integer" | "number" as kind, *_]}:
            return ", ".join([f"{'whole ' if kind == 'integer' else ''}number", *describe_bounds(field)])
        case {"type": "boolean"}:
            return "`true`, `false`"
        case {"type": "string"}:
            return "text"
    return "mapping"


def describe_bounds(field: dict[str, Any]) -> list[str]:
    """Return the bounds of a number."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]


def describe_default(key: str, field: dict[str, Any], section: dict[str, Any]) -> str:
    """Return a key's default; a section's is made of those of its keys."""
    if key in section.get("required", ()):
        return "*required*"
    default = field.get("default")
    if default in (None, {}, []):
        return "*unset*"
    if isinstance(default, dict):
        return "its keys'"
    return f"`{default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
