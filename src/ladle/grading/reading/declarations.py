"""What an answer says of its letters beside the answer itself: `k \\in \\mathbb{Z}`, `for some constant k`.

Such a letter is bound, so another one in its place says the same. A condition that is more than the kind of a letter
(`with f(a)=0`) is kept as its words, which can be held against other words only.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ladle.grading.reading.normalise import TEXT_COMMANDS

_FACES = {"Z": ("integer",), "N": ("positive", "integer"), "R": ("real",), "Q": ("rational",), "C": ("complex",)}
_SET = r"\\math(?:bb|bf|rm)\s*\{\s*([ZNRQC])\s*\}\s*(?:[\^_]\s*\{?\s*([+*])\s*\}?)?"
_LETTERS = r"([A-Za-z](?:_\{?\w\}?)?(?:\s*,\s*[A-Za-z](?:_\{?\w\}?)?)*)"
_INTRODUCTION = rf"(?:\\(?:{TEXT_COMMANDS})\s*\{{)?\s*(?:for|where|with|and)?(?:\s+(?:any|some|all|each|every))?\s*\}}?"
_MEMBERSHIP = re.compile(rf"[\s,;:(]*{_INTRODUCTION}\s*\(?\s*(?<![A-Za-z\\]){_LETTERS}\s*\\in\s*{_SET}[\s).]*$")
_CLAUSE = re.compile(
    rf"[\s,;(]*(?:\\(?:{TEXT_COMMANDS})\s*\{{\s*)?(?<![A-Za-z\\])(?:where|for|with|such that|when|if)\b(?P<rest>.*)$",
    re.DOTALL,
)
_KINDS_TEXT = "integer real rational complex natural positive negative nonnegative nonzero even odd prime"
_NO_WORDS_TEXT = """where for with such that when if is are be an any all every each some arbitrary fixed constant
number value parameter and or the of in let given by satisfying being denotes"""
_KINDS, _NO_WORDS = frozenset(_KINDS_TEXT.split()), frozenset(_NO_WORDS_TEXT.split())
_PIECE = re.compile(r"\\[A-Za-z]+|[A-Za-z]+(?:'s)?|[^\sA-Za-z{}]+")
_IGNORED = frozenset({",", ";", ".", "(", ")", "$", ":"})


class Declared(NamedTuple):
    """An answer without its declarations, and what they say.

    Attributes:
        text: the answer.
        letters: the letters that they bind.
        kinds: what kind of numbers the letters are, such as `positive` and `integer`; empty if unsaid.
        condition: the words and signs of what else is said; empty if nothing is.
    """

    text: str
    letters: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    condition: frozenset[str] = frozenset()


def split_declarations(text: str) -> Declared:
    """Split a normalised answer into the answer and what it declares of its letters."""
    declared = Declared(text)
    for split in (_split_membership, _split_clause):
        found = split(declared.text)
        if found is not None and _holds_any(found.text, found.letters):
            declared = Declared(
                found.text,
                declared.letters | found.letters,
                declared.kinds | found.kinds,
                declared.condition | found.condition,
            )
    return declared


def _holds_any(text: str, letters: frozenset[str]) -> bool:
    plain = re.sub(rf"\\(?:{TEXT_COMMANDS})\s*\{{[^{{}}]*\}}|\\[A-Za-z]+", " ", text)
    return any(letter[0] in plain for letter in letters)


def _split_membership(text: str) -> Declared | None:
    found = _MEMBERSHIP.search(text) if "\\in" in text else None
    if found is None or found.start() == 0:
        return None
    kinds = _FACES[found[2]] + (("positive",) if found[3] == "+" else ())
    letters = frozenset(piece.strip() for piece in found[1].split(","))
    return Declared(text[: found.start()].rstrip(" ,;("), letters, frozenset(kinds))


def _split_clause(text: str) -> Declared | None:
    found = _CLAUSE.search(text)
    if found is None or found.start() == 0:
        return None
    rest = re.sub(rf"\\(?:{TEXT_COMMANDS})\b|\\in\b", " ", found["rest"])
    rest = re.sub(_SET, lambda face: " ".join(_FACES[face[1]]), rest).replace("non-", "non")
    pieces = [piece for piece in _PIECE.findall(rest) if piece not in _IGNORED]
    words = [_plain(piece) for piece in pieces]
    letters = frozenset(piece for piece in pieces if len(piece) == 1 and piece.isalpha() and piece != "a")
    letters |= {"a"} if re.search(r"\ba\b\s*(?:,|\bis\b|\band\b|$)", rest) else set()
    kinds = frozenset(word for word in words if word in _KINDS)
    said = {word for word in words if word not in _KINDS and word not in _NO_WORDS}
    condition = said if said - letters - {"a"} else set[str]()  # with its letters, which a condition does not bind
    return Declared(text[: found.start()].rstrip(" ,;("), letters, kinds, frozenset(condition))


def _plain(word: str) -> str:
    return word.lower().removesuffix("s") if len(word) > 1 and word[0] != "\\" and word.lower() != "is" else word
