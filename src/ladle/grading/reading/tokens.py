"""Cut a normalised answer into tokens, and scan them by bracket depth."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ladle.grading.reading.normalise import FUNCTION_NAMES, TEXT_COMMANDS
from ladle.grading.reading.tree import TooLarge, Unreadable

MAX_DEPTH = 40
"""Brackets nested deeper than this are not an answer; it keeps the reader's recursion far from Python's limit."""


class Token(NamedTuple):
    """A piece of the text: kind is number, word, run, command, environment or sign."""

    kind: str
    text: str


_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
    rf"|\\(?:{TEXT_COMMANDS})\s*\{{(?P<word>[^{{}}]*)\}}"
    r"|\\(?P<environment>(?:begin|end)\s*\{[a-zA-Z*]+\})"
    r"|\\math(?:bb|cal|frak|scr)\s*\{(?P<face>[A-Za-z])\}"
    r"|\\(?P<command>[a-zA-Z]+|[{}|\\])"
    r"|(?P<run>[A-Za-z]+)"
    r"|(?P<sign>[-+*/^_(){}\[\]|=<>,;:!'%&\"])"
    r")"
)
_OPENING = ("(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil", "\\begin")
_CLOSING = (")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil", "\\end")
_STEPS: dict[str, int] = {text: step for texts, step in ((_OPENING, 1), (_CLOSING, -1)) for text in texts}


def tokenize(text: str) -> list[Token]:
    """Return the tokens of the text.

    Raises:
        Unreadable: a character is foreign to the language, or brackets do not match.
        TooLarge: brackets nest too deep.
    """
    tokens: list[Token] = []
    position, end = 0, len(text)
    while position < end:
        found = _TOKEN.match(text, position)
        if found is None:
            raise Unreadable(f"unexpected {text[position : position + 12].strip()!r}")
        token = _make_token(found, is_last=not text[found.end() :].strip())
        if token.text:  # an empty text group says nothing
            tokens.append(token)
        position = found.end()
    _check_depth(tokens)
    return tokens


def _make_token(found: re.Match[str], is_last: bool) -> Token:
    """Return the token found; a text group that names a function is that function, unless nothing follows (`5 min`)."""
    kind = found.lastgroup or ""
    text = found[kind]
    if kind == "command":
        return Token("command", "\\" + text)
    if kind == "environment":
        command, _, name = text.partition("{")
        return Token(name.rstrip("}*"), "\\" + command.strip())
    if kind == "word":
        words = " ".join(text.replace("\\", " ").split())
        is_function = words in FUNCTION_NAMES and not is_last
        return Token("command", "\\" + words) if is_function else Token("word", words)
    return Token(kind, text)


def depth_step(token: Token) -> int:
    """Return 1 for an opening bracket, -1 for a closing one, 0 for anything else."""
    return 0 if token.kind == "word" else _STEPS.get(token.text, 0)


def _check_depth(tokens: Sequence[Token]) -> None:
    depth = 0
    for token in tokens:
        depth += depth_step(token)
        if depth > MAX_DEPTH:
            raise TooLarge(f"brackets nest deeper than {MAX_DEPTH}")
        if depth < 0:
            break
    if depth != 0:
        raise Unreadable("brackets do not match")


def split_at(tokens: Sequence[Token], is_separator: Callable[[Token], bool]) -> tuple[list[list[Token]], list[Token]]:
    """Cut at the separators that stand outside all brackets; return the pieces and the separators between them."""
    pieces: list[list[Token]] = [[]]
    separators: list[Token] = []
    depth = 0
    for token in tokens:
        depth += depth_step(token)
        if depth == 0 and is_separator(token):
            pieces.append([])
            separators.append(token)
        else:
            pieces[-1].append(token)
    return pieces, separators


def find_closing(tokens: Sequence[Token], start: int) -> int:
    """Return the index of the bracket that closes the one at `start`; kinds may differ, as in `(3, 4]`.

    Raises:
        Unreadable: it is never closed.
    """
    depth = 0
    for index in range(start, len(tokens)):
        depth += depth_step(tokens[index])
        if depth == 0:
            return index
    raise Unreadable(f"{tokens[start].text} is not closed")
