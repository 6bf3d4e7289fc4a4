"""Numbers of choices in the forms that TeX has no command for: `_6C_3` and `C_n^2` become `C(6,3)` and `C(n,2)`.

`C_1^2` stays the square of a constant: a choice is from `n`, `m`, `N`, or from three or more.
"""

from __future__ import annotations

import re

_INDEX = r"(?:\{\s*([\w+\-]+)\s*\}|(\w))"
_LETTER = r"(?:\\(?:mathrm|text|rm)\s*\{\s*)?([CP])(?:\s*\})?"
_PREFIXED = re.compile(rf"(?<![A-Za-z\d}}])(?:\{{\s*\}})?\s*[_^]\s*{_INDEX}\s*{_LETTER}\s*_\s*{_INDEX}")
_BELOW_FIRST = re.compile(rf"(?<![A-Za-z\\]){_LETTER}\s*_\s*{_INDEX}\s*\^\s*{_INDEX}")
_ABOVE_FIRST = re.compile(rf"(?<![A-Za-z\\]){_LETTER}\s*\^\s*{_INDEX}\s*_\s*{_INDEX}")
_CHOSEN_FROM = re.compile(r"\d*[nmN](?:[+-]\d+)?")


def spell_choices(text: str) -> str:
    """Return the text with `{}_6C_3`, `C_n^2` and `C^2_n` as `C(6,3)` and `C(n,2)`, and permutations with `P` alike."""
    if "C" not in text and "P" not in text:
        return text
    text = _PREFIXED.sub(lambda found: f"{found[3]}({found[1] or found[2]},{found[4] or found[5]})", text)
    text = _BELOW_FIRST.sub(lambda found: _spell(found, found[2] or found[3], found[4] or found[5]), text)
    return _ABOVE_FIRST.sub(lambda found: _spell(found, found[4] or found[5], found[2] or found[3]), text)


def _spell(found: re.Match[str], total: str, chosen: str) -> str:
    from_number = total.isdigit() and int(total) >= 3 and (not chosen.isdigit() or int(chosen) <= int(total))
    if not from_number and not _CHOSEN_FROM.fullmatch(total):
        return found[0]
    return f"{found[1]}({total},{chosen})"
