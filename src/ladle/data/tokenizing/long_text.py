"""Encodes a text of any length in parts of bounded size, with the very ids of the whole.

A place is a safe cut if encoding the text before and after it apart gives the same ids as encoding across it. That is
checked, not
assumed: from the last cut to some way past the new one, as one text and as two. What is assumed is that text further
on than `LOOKAHEAD` characters cannot change ids before the cut, which holds for any tokenizer that first splits text
by a regular expression. Places right before a space or a line break that follows a letter are tried first; a
tokenizer that lets nothing be cut (one that puts a prefix on each text, say) gets the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ladle.data.tokenizing.encoders import Encoder

PART_CHARS = 2**18
LOOKAHEAD = 2**12
CANDIDATES = 8

_BOUNDARY = re.compile(r"(?<=[^\W\d_])(?=[ \n])|(?<=[。，])")


def encode_long(text: str, encoder: Encoder) -> Iterator[np.ndarray]:
    """Yield the ids of a text, part by part; end to end they equal `encoder.encode([text])[0]`."""
    start = 0
    while len(text) - start > PART_CHARS + LOOKAHEAD:
        found = _cut(text, start, encoder)
        if found is None:
            break
        start, ids = found
        yield ids
    yield encoder.encode([text[start:]])[0]


def _cut(text: str, start: int, encoder: Encoder) -> tuple[int, np.ndarray] | None:
    """Return a safe cut about PART_CHARS after `start` and the ids between the two, or None if no place tried is
    safe."""
    for cut in _candidates(text, start + PART_CHARS):
        head = encoder.encode([text[start:cut]])[0]
        tail = encoder.encode([text[cut : cut + LOOKAHEAD]])[0]
        whole = encoder.encode([text[start : cut + LOOKAHEAD]])[0]
        if np.array_equal(whole, np.concatenate([head, tail])):
            return cut, head
    return None


def _candidates(text: str, near: int) -> list[int]:
    marked = [match.start() for match in _BOUNDARY.finditer(text, near - LOOKAHEAD, near)]
    return [*reversed(marked[-CANDIDATES:]), *range(near, near - CANDIDATES, -1)]
