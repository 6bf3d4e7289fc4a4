"""Hashes of the n-grams of words in a text, at compiled speed.

Words are runs of letters and digits in lower case; each Chinese, Japanese or Korean character is a word of its own;
everything else separates. So punctuation, markup, case and spacing do not hide a copy. An n-gram is a 64-bit
polynomial of its words' FNV-1a hashes, rolled along the text; at 200 thousand n-grams looked for among ten thousand
million, a chance match has probability 1e-4.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
BASE = np.uint64(0x9E3779B97F4A7C15)
FILTER_BITS = 22
"""Size of the table that rules out most n-grams without a search: 4 Mi entries, 512 KiB."""


def ngram_hashes(text: str, num_words: int) -> np.ndarray:
    """Return the hash (u8) of each run of `num_words` words, in order; none for a shorter text."""
    return _hash_ngrams(_bytes_of(text), num_words)


class NgramSet:
    """n-grams to look for.

    Args:
        hashes: (n,) u8, sorted, each once.
        num_words: n.
    """

    def __init__(self, hashes: np.ndarray, num_words: int) -> None:
        self.hashes, self.num_words = hashes, num_words
        self._filter = np.zeros(2**FILTER_BITS // 64, np.uint64)
        _fill_filter(self._filter, hashes)

    def find(self, text: str) -> tuple[int, int]:
        """Return how many n-grams of a text are in the set, and the index in `hashes` of the first one (-1 for
        none)."""
        return _find(_bytes_of(text), self.num_words, self.hashes, self._filter)


def _bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.lower().encode("utf-8"), np.uint8)


@njit(cache=True)
def _hash_ngrams(data: np.ndarray, num_words: int) -> np.ndarray:
    words = _hash_words(data)
    result = np.empty(max(0, len(words) - num_words + 1), np.uint64)
    power = _power(num_words)
    rolled = uint64(0)
    for index in range(len(words)):
        rolled = _roll(rolled, words, index, num_words, power)
        if index >= num_words - 1:
            result[index - num_words + 1] = rolled
    return result


@njit(cache=True)
def _find(data: np.ndarray, num_words: int, hashes: np.ndarray, table: np.ndarray) -> tuple[int, int]:
    words = _hash_words(data)
    power = _power(num_words)
    rolled = uint64(0)
    count, first = 0, -1
    for index in range(len(words)):
        rolled = _roll(rolled, words, index, num_words, power)
        if index < num_words - 1 or not _may_hold(table, rolled):
            continue
        at = np.searchsorted(hashes, rolled)
        if at < len(hashes) and hashes[at] == rolled:
            count += 1
            if first < 0:
                first = int(at)
    return count, first


@njit(cache=True)
def _roll(rolled: np.uint64, words: np.ndarray, index: int, num_words: int, power: np.uint64) -> np.uint64:
    rolled = rolled * BASE + words[index]
    if index >= num_words:
        rolled -= words[index - num_words] * power
    return rolled


@njit(cache=True)
def _power(num_words: int) -> np.uint64:
    power = uint64(1)
    for _ in range(num_words):
        power *= BASE
    return power


@njit(cache=True)
def _hash_words(data: np.ndarray) -> np.ndarray:
    """Return the hash of each word of UTF-8 text."""
    words = np.empty(len(data), np.uint64)
    count = 0
    current, open_word = FNV_OFFSET, False
    at = 0
    while at < len(data):
        size, point = _decode(data, at)
        alone = _is_word_alone(point)
        inside = _is_in_word(point)
        if open_word and (alone or not inside):
            words[count] = current
            count += 1
            current, open_word = FNV_OFFSET, False
        if inside:
            for offset in range(size):
                current = (current ^ uint64(data[at + offset])) * FNV_PRIME
            open_word = True
        if alone:
            words[count] = current
            count += 1
            current, open_word = FNV_OFFSET, False
        at += size
    if open_word:
        words[count] = current
        count += 1
    return words[:count]


@njit(cache=True)
def _decode(data: np.ndarray, at: int) -> tuple[int, int]:
    """Return the number of bytes and the code point of the character at `at`; the bytes are valid UTF-8."""
    lead = int(data[at])
    if lead < 0x80:
        return 1, lead
    if lead < 0xE0:
        return 2, (lead & 0x1F) << 6 | (int(data[at + 1]) & 0x3F)
    if lead < 0xF0:
        return 3, (lead & 0x0F) << 12 | (int(data[at + 1]) & 0x3F) << 6 | (int(data[at + 2]) & 0x3F)
    high = (lead & 0x07) << 18 | (int(data[at + 1]) & 0x3F) << 12
    return 4, high | (int(data[at + 2]) & 0x3F) << 6 | (int(data[at + 3]) & 0x3F)


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


@njit(cache=True)
def _fill_filter(table: np.ndarray, hashes: np.ndarray) -> None:
    for value in hashes:
        slot = value >> uint64(64 - FILTER_BITS)
        table[slot >> uint64(6)] |= uint64(1) << (slot & uint64(63))


@njit(cache=True)
def _may_hold(table: np.ndarray, value: np.uint64) -> bool:
    slot = value >> uint64(64 - FILTER_BITS)
    return (table[slot >> uint64(6)] >> (slot & uint64(63))) & uint64(1) != 0
