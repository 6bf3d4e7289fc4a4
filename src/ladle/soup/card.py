"""The model card of a soup: what it is made of, and the command that makes it again."""

from __future__ import annotations

from typing import Any

import yaml

from ladle.soup.config import SoupConfig


def model_card(info: dict[str, Any]) -> str:
    """Return the README.md of a soup from its merge_info."""
    members, tensors = info["members"], info["tensors"]
    rows = "\n".join(f"| {member['name']} | {member['coefficient']} | {_hash_of(member)} |" for member in members)
    settings = {key: value for key, value in info["config"].items() if value is not None}
    waived = "".join(
        f"- `{field}`: {entry['count']}, for example {entry['first'][0]}\n" for field, entry in info["waived"].items()
    )
    return f"""---
library_name: transformers
tags:
- merge
- model-soup
---

# Model soup

The exact weighted mean of {len(members)} models, each element rounded once ({info["method"]}).

| member | share | blake3 of its weights |
|---|---|---|
{rows}

{tensors["averaged"]:,} tensors were averaged, {tensors["equal_in_all"]:,} were equal in all members, \
{len(tensors["copied_from_first"]):,} were copied from the first member, {len(tensors["dropped"]):,} were left out.

{f"Differences that were accepted:{chr(10)}{chr(10)}{waived}{chr(10)}" if waived else ""}Made with

```bash
{_command(info)}
```

and these settings:

```yaml
{yaml.safe_dump(settings, sort_keys=True).strip()}
```

`merge_info.json` has every file's hash; `ladle verify` checks them.
"""


def _hash_of(member: dict[str, Any]) -> str:
    digests = [entry["blake3"] for entry in member["files"].values() if entry["blake3"]]
    return ", ".join(f"`{digest[:16]}…`" for digest in digests) or "not recorded"


def _command(info: dict[str, Any]) -> str:
    names = " ".join(member["name"] for member in info["members"])
    defaults = SoupConfig.model_validate({}).identity()
    settings = [f"{key}={_value(value)}" for key, value in sorted(info["config"].items()) if value != defaults[key]]
    return " ".join(["ladle soup", names, "--out DIR", *settings])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ",".join(str(item) for item in value) + "]" if isinstance(value, list) else str(value)
