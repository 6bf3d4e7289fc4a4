"""Hashes of the n-grams of words in a text, at compiled speed.

Words are runs of letters and digits in lower case; each Chinese, Japanese or Korean character is a word of its own;
everything else separates. So punctuation, markup, case and spacing do not hide a copy. An n-gram is a 64-bit
polynomial of its words' hashes (FNV-1a over code points), rolled along the text; at 200 thousand n-grams looked for
among ten thousand million, a chance match has probability 1e-4.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
BASE = np.uint64(0x9E3779B97F4A7C15)
FILTER_BITS = 20
"""Size of the table that rules out most n-grams without a search: 1 MiB, which fits in a core's cache."""


def ngram_hashes(text: str, num_words: int) -> np.ndarray:
    """Return the hash (u8) of each run of `num_words` words, in order; none for a shorter text."""
    return _hash_ngrams(_points_of(text), num_words)


class NgramSet:
    """n-grams to look for.

    Args:
        hashes: (n,) u8, sorted, each once.
        num_words: n.
    """

    def __init__(self, hashes: np.ndarray, num_words: int) -> None:
        self.hashes, self.num_words = hashes, num_words
        self._may_hold = np.zeros(2**FILTER_BITS, np.bool_)
        self._may_hold[hashes >> np.uint64(64 - FILTER_BITS)] = True

    def find(self, text: str) -> tuple[int, int]:
        """Return how many n-grams of a text are in the set, and the index in `hashes` of the first one (-1 for
        none)."""
        return _find(_hash_ngrams(_points_of(text), self.num_words), self.hashes, self._may_hold)


def _points_of(text: str) -> np.ndarray:
    return np.frombuffer(text.lower().encode("utf-32-le"), np.uint32)


@njit(cache=True)
def _hash_ngrams(points: np.ndarray, num_words: int) -> np.ndarray:
    words = _hash_words(points)
    result = np.empty(max(0, len(words) - num_words + 1), np.uint64)
    power = uint64(1)
    for _ in range(num_words):
        power *= BASE
    rolled = uint64(0)
    for index in range(len(words)):
        rolled = rolled * BASE + words[index]
        if index >= num_words:
            rolled -= words[index - num_words] * power
        if index >= num_words - 1:
            result[index - num_words + 1] = rolled
    return result


@njit(cache=True)
def _find(ngrams: np.ndarray, hashes: np.ndarray, may_hold: np.ndarray) -> tuple[int, int]:
    count, first = 0, -1
    for value in ngrams:
        if not may_hold[value >> uint64(64 - FILTER_BITS)]:
            continue
        at = np.searchsorted(hashes, value)
        if at < len(hashes) and hashes[at] == value:
            count += 1
            if first < 0:
                first = int(at)
    return count, first


@njit(cache=True)
def _hash_words(points: np.ndarray) -> np.ndarray:
    """Return the hash of each word of a text, given its code points."""
    words = np.empty(len(points), np.uint64)
    count = 0
    current, is_open = FNV_OFFSET, False
    for point in points:
        is_alone = _is_word_alone(point)
        if is_open and (is_alone or not _is_in_word(point)):
            words[count] = current
            count += 1
            current, is_open = FNV_OFFSET, False
        if is_alone:
            words[count] = (FNV_OFFSET ^ uint64(point)) * FNV_PRIME
            count += 1
        elif _is_in_word(point):
            current = (current ^ uint64(point)) * FNV_PRIME
            is_open = True
    if is_open:
        words[count] = current
        count += 1
    return words[:count]


@njit(cache=True)
def _is_in_word(point: int) -> bool:
    """Tell whether a character belongs to words: ASCII letters and digits, and what lies beyond Latin-1's and general
    punctuation."""
    if point < 0x80:
        return 0x30 <= point <= 0x39 or 0x61 <= point <= 0x7A
    if point < 0xC0 or 0x2000 <= point <= 0x2BFF or 0x3000 <= point <= 0x303F:
        return False
    return not (0xFE10 <= point <= 0xFE6F or 0xFF00 <= point <= 0xFF0F or 0xFF1A <= point <= 0xFF20)


@njit(cache=True)
def _is_word_alone(point: int) -> bool:
    """Tell whether a character is a word of its own: kana, ideographs, Hangul syllables."""
    return (
        0x3040 <= point <= 0x9FFF
        or 0xAC00 <= point <= 0xD7AF
        or 0xF900 <= point <= 0xFAFF
        or 0x20000 <= point <= 0x3FFFF
    )
