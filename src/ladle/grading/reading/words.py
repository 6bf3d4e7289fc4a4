"""Answers in words: names, directions, and the letters of multiple-choice options."""

from __future__ import annotations

import re

from ladle.grading.reading.normalise import TEXT_COMMANDS

_MARKUP = re.compile(rf"\\(?:{TEXT_COMMANDS})\b|\\[a-zA-Z]+|[\\{{}}$*_~]")
_NOT_WORDS = re.compile(r"[^\w\s%+-]|_")
_ARTICLES = frozenset({"a", "an", "the"})
_OPTION = re.compile(r"\(?\s*([A-J])\s*\)?")
_LABELLED = re.compile(r"(?:\(\s*([A-Ja-j])\s*\)|([A-J])\s*[).:])(?:\s.*)?", re.DOTALL)


def plain_words(text: str) -> str:
    """Return the words of a text: lower case, without markup, punctuation and articles."""
    words = _NOT_WORDS.sub(" ", _without_markup(text).lower()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in _ARTICLES else words)


def _without_markup(text: str) -> str:
    return _MARKUP.sub(" ", text)


def option_letter(text: str, is_answer: bool) -> str | None:
    """Return the letter of the option that the text chooses: `C`, `(C)`, and in an answer also `(C) 12` and `C. 12`."""
    plain = " ".join(_without_markup(text).split())
    found = _OPTION.fullmatch(plain.upper() if is_answer else plain)
    if found is not None:
        return found[1]
    labelled = _LABELLED.fullmatch(plain) if is_answer else None
    return None if labelled is None else (labelled[1] or labelled[2]).upper()


_MARKED_LABEL = re.compile(rf"^\s*(?:\\(?:{TEXT_COMMANDS})\s*\{{\s*)?\(\s*[A-J]\s*\)(?:\s*\}}\s*|\s+)(?=\S)")


def drop_option_label(text: str) -> str:
    """Return the text without the option letter before it: `\\text{(B)} 12` is 12."""
    return _MARKED_LABEL.sub("", text)
