"""Answers in words: names, directions, and the letters of multiple-choice options."""

from __future__ import annotations

import re

from ladle.grading.reading.normalise import TEXT_COMMANDS

_MARKUP = re.compile(rf"\\(?:{TEXT_COMMANDS})\b|\\[a-zA-Z]+|[\\{{}}$*_~]")
NO_SOLUTION = "no solution"
_SIGN_WORDS = {"\\infty": " infinity ", "∞": " infinity ", "\\emptyset": NO_SOLUTION, "\\varnothing": NO_SOLUTION}
_SIGNS = re.compile(r"\\(?:infty|emptyset|varnothing)(?![a-zA-Z])|∞")
_SYNONYMS = {
    same: words
    for words, others in {
        NO_SOLUTION: "none|empty set|no real solution|no solution exist|does not exist|dne|there is no solution|"
        "there are no solution|there is no real solution|there are no real solution",
        "infinity": "infinitely many|infinite|infinitely many solution|infinite solution|infinite number of solution",
    }.items()
    for same in others.split("|")
}
_NOT_WORDS = re.compile(r"[^\w\s%+-]|_")
_ARTICLES = frozenset({"a", "an", "the"})
_OPTION = re.compile(r"\(?\s*([A-J])\s*\)?")
_INTRODUCED = re.compile(r"(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)(?:\s+(?:choice|is))?\s*:?\s*(?=\S)", re.I)
_LABELLED = re.compile(r"(?:\(\s*([A-Ja-j])\s*\)|([A-J])\s*[).:])(?:\s.*)?", re.DOTALL)


def plain_words(text: str) -> str:
    """Return the words of a text: lower case, without markup, punctuation and articles."""
    text = _without_markup(_SIGNS.sub(lambda found: _SIGN_WORDS[found[0]], text))
    words = _NOT_WORDS.sub(" ", text.lower()).split()
    plain = " ".join(_singular(word) for word in (words[1:] if len(words) > 1 and words[0] in _ARTICLES else words))
    return _SYNONYMS.get(plain, plain)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 4 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _without_markup(text: str) -> str:
    return _MARKUP.sub(" ", text)


def option_letter(text: str, is_answer: bool) -> str | None:
    """Return the letter of the option that the text chooses: `C`, `(C)`, and in an answer also `(C) 12` and `C. 12`."""
    plain = " ".join(_without_markup(text).split())
    if is_answer:
        plain = _INTRODUCED.sub("", plain, count=1) if _INTRODUCED.match(plain) else plain
    found = _OPTION.fullmatch(plain.upper() if is_answer else plain)
    if found is not None:
        return found[1]
    labelled = _LABELLED.fullmatch(plain) if is_answer else None
    return None if labelled is None else (labelled[1] or labelled[2]).upper()


_MARKED_LABEL = re.compile(rf"^\s*(?:\\(?:{TEXT_COMMANDS})\s*\{{\s*)?\(\s*[A-J]\s*\)(?:\s*\}}\s*|\s+)(?=\S)")


def drop_option_label(text: str) -> str:
    """Return the text without the option letter before it: `\\text{(B)} 12` is 12."""
    return _MARKED_LABEL.sub("", text)
