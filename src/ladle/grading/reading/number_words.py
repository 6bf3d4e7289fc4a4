"""Numbers in words: `twenty-five` is 25, `two thirds` 2/3, `two apples` 2 apples, `2.5 million` 2.5 times a power.

English alone, and only at the front of an answer: words anywhere else are names (`one-to-one`, `the two of them`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: number for number, word in enumerate(_SMALL.split())} | {
    word: 10 * number for number, word in enumerate(_TENS.split(), start=2)
}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_PARTS = {
    name: number
    for number, names in {
        **{2: "half halve", 3: "third", 4: "quarter fourth", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"},
        **{9: "ninth", 10: "tenth", 100: "hundredth"},
    }.items()
    for name in names.split()
}
_ANSWER = re.compile(r"[A-Za-z]+(?:(?:-|\s+)[A-Za-z]+)*")
_MAX_NOUNS = 3
_JOINTS = frozenset({"to", "of", "or", "and", "in", "per", "over", "out"})  # more than a number and a noun
_MULTIPLE = re.compile(
    rf"(?<=[\d}}])\s*(?P<group>\\(?:text|textrm|mathrm|mbox)\s*\{{\s*)?(?P<name>{'|'.join(_POWERS)})s?\b"
)


def spell_number_words(text: str) -> str:
    """Return an answer that is a number in words, and perhaps a noun, with the number in digits; any other as it is."""
    if _ANSWER.fullmatch(text) is None:
        return text
    words = text.lower().replace("-", " ").split()
    if (mixed := _spell_mixed(words)) is not None:
        return mixed
    denominator = _PARTS.get(words[-1].removesuffix("s"))
    if denominator is not None and (numerator := read_number_words(words[:-1])) is not None:
        return f"{numerator}/{denominator}"
    count = next((i for i, word in enumerate(words) if not _is_numeral(word, words[i + 1 : i + 2])), len(words))
    nouns = words[count:]
    if len(nouns) > _MAX_NOUNS or _JOINTS & set(nouns) or nouns and "-" in text.split()[-1]:
        return text
    value = read_number_words(words[:count])
    return text if value is None else " ".join([str(value), *nouns])


def _spell_mixed(words: Sequence[str]) -> str | None:
    """Return `4 1/2` for `four and a half`; None for anything else."""
    if "and" not in words[1:-2]:
        return None
    at = words.index("and")
    whole, denominator = read_number_words(words[:at]), _PARTS.get(words[-1].removesuffix("s"))
    parts = ["one" if word in ("a", "an") else word for word in words[at + 1 : -1]]
    numerator = read_number_words(parts)
    if whole is None or denominator is None or numerator is None or not 0 < numerator < denominator:
        return None
    return f"{whole} {numerator}/{denominator}"


def _is_numeral(word: str, following: Sequence[str]) -> bool:
    if word == "and":
        return bool(following) and following[0] in _VALUES
    return word in _VALUES or word in _POWERS


def read_number_words(words: Sequence[str]) -> int | None:
    """Return the integer that the words name; None where they name none, or more than one."""
    total, group, last_power = 0, 0, 99
    filled = 3  # decimal places below which the current group of three is still empty
    for word in words:
        if word == "and":
            continue
        if word in _VALUES:
            value = _VALUES[word]
            size = 1 if value < 10 else 2
            if size > filled or (value == 0 and len(words) > 1):
                return None
            group, filled = group + value, 1 if value >= 20 else 0
        elif word == "hundred":
            if not 0 < group < 10 or filled == 3:
                return None
            group, filled = group * 100, 2
        elif word in _POWERS:
            if group == 0 or _POWERS[word] >= last_power:
                return None
            last_power = _POWERS[word]
            total, group, filled = total + group * 10**last_power, 0, 3
        else:
            return None
    return total + group if words else None


def spell_multiples(text: str) -> str:
    """Return the text with `2.5 million` as a product: `2.5 \\cdot 10^{6}`; a noun in the same group stays in it."""
    return _MULTIPLE.sub(
        lambda found: rf" \cdot 10^{{{_POWERS[found['name']]}}} " + (found["group"] or ""),
        text,
    )
