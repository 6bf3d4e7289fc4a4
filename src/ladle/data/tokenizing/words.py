"""Splits text into the words of a GPT-4-style byte-level tokenizer and looks each word's ids up, at compiled speed.

Such a tokenizer cuts text by a regular expression into words and encodes each word apart, so a word's ids are worked
out once and remembered. This file has the cut, by the patterns of `PATTERNS` written out as a scanner, and the table of
words; the ids themselves come from the tokenizer (`ladle.data.tokenizing.memo`). A line with a character whose class or
normalization could depend on the version of Unicode is left to the tokenizer as a whole.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numba import njit, uint64

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {_CL100K % "": 1, _CL100K % "{1,3}": 3}
"""Pattern to the number of digits in a word: Qwen's, and GPT-4's and Llama 3's."""

OTHER, LETTER, NUMBER, SPACE, NEWLINE, UNSURE = range(6)
WHITE_SPACE = (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
"""Unicode's property White_Space, which \\s stands for."""
LONG_S = 0x17F
"""Matches s where case is ignored."""
BLOCKS = (range(0x10000), range(0x1F000, 0x1FC00), range(0x20000, 0x2A6E0))
"""Where characters are told apart: the basic plane, emoji, ideographs; others are UNSURE."""
TABLE_POINTS = 0x2A6E0


@functools.cache
def character_classes() -> np.ndarray:
    """Return the class (u1) of each code point below TABLE_POINTS; UNSURE where it is unassigned, or where NFC may
    change it or join it to the character before."""
    classes = np.full(TABLE_POINTS, UNSURE, np.uint8)
    joined = set(range(0x1100, 0x1200))  # Hangul's parts compose by arithmetic
    for block in BLOCKS:
        for point in block:
            character = chr(point)
            category = unicodedata.category(character)
            parts = unicodedata.decomposition(character)
            if parts and parts[0] != "<" and " " in parts:
                joined.add(int(parts.split()[1], 16))
            if category in ("Cn", "Cs", "Co") or unicodedata.combining(character):
                continue
            if parts and parts[0] != "<" and not unicodedata.is_normalized("NFC", character):
                continue
            classes[point] = LETTER if category[0] == "L" else NUMBER if category[0] == "N" else OTHER
    classes[[point for point in WHITE_SPACE if classes[point] != UNSURE]] = SPACE  # NFC changes U+2000 and U+2001
    classes[[0x0A, 0x0D]] = NEWLINE
    classes[[LONG_S, *(point for point in joined if point < TABLE_POINTS)]] = UNSURE
    return classes


@njit(cache=True)
def split_texts(
    data: np.ndarray, text_stops: np.ndarray, classes: np.ndarray, max_digits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut texts into words, and lines that hold a character that is UNSURE into lines.

    Args:
        data: (bytes,) u1, the UTF-8 of all texts, end to end.
        text_stops: (texts,) i8, where each text ends.
        classes: of `character_classes`.
        max_digits: digits of a word.

    Returns:
        (words,) i8, where each word or line ends; it begins where the one before ends. (words,) b1, whether it is a
        line. (texts,) i8, the number of words and lines of each text.
    """
    stops = np.empty(len(data), np.int64)
    are_lines = np.zeros(len(data), np.bool_)
    counts = np.empty(len(text_stops), np.int64)
    num_words, at = 0, 0
    for text in range(len(text_stops)):
        first, end = num_words, text_stops[text]
        while at < end:
            line, line_end = _next_unsure_line(data, at, end, classes)
            while at < line:
                at = _word_end(data, at, line, classes, max_digits)
                stops[num_words] = at
                num_words += 1
            if line < end:
                at = line_end
                stops[num_words], are_lines[num_words] = at, True
                num_words += 1
        counts[text] = num_words - first
    return stops[:num_words].copy(), are_lines[:num_words].copy(), counts


@njit(cache=True)
def _next_unsure_line(data: np.ndarray, begin: int, end: int, classes: np.ndarray) -> tuple[int, int]:
    """Return where the next line with a character that is UNSURE begins and ends; (end, end) where there is none.

    A line begins after a line break that no white space follows: there every pattern ends a word, whatever comes.
    """
    line, at, after_break, is_unsure = begin, begin, False, False
    while at < end:
        size, kind = _class_at(data, at, classes)
        if after_break and kind != SPACE and kind != NEWLINE:
            if is_unsure:
                return line, at
            line = at
        is_unsure = is_unsure or kind == UNSURE
        after_break = kind == NEWLINE
        at += size
    return (line, end) if is_unsure else (end, end)


@njit(cache=True)
def _class_at(data: np.ndarray, at: int, classes: np.ndarray) -> tuple[int, int]:
    """Return the bytes and the class of the character at `at`; the bytes are valid UTF-8."""
    lead = int(data[at])
    if lead < 0x80:
        return 1, int(classes[lead])
    if lead < 0xE0:
        return 2, int(classes[(lead & 0x1F) << 6 | (int(data[at + 1]) & 0x3F)])
    if lead < 0xF0:
        point = (lead & 0x0F) << 12 | (int(data[at + 1]) & 0x3F) << 6 | (int(data[at + 2]) & 0x3F)
        return 3, int(classes[point])
    point = (lead & 0x07) << 18 | (int(data[at + 1]) & 0x3F) << 12 | (int(data[at + 2]) & 0x3F) << 6
    point |= int(data[at + 3]) & 0x3F
    return 4, int(classes[point]) if point < len(classes) else UNSURE


@njit(cache=True)
def _run_end(data: np.ndarray, at: int, end: int, classes: np.ndarray, kind: int, most: int) -> int:
    """Return where a run of at most `most` characters of a class ends."""
    count = 0
    while at < end and count < most:
        size, here = _class_at(data, at, classes)
        if here != kind:
            break
        at += size
        count += 1
    return at


@njit(cache=True)
def _word_end(data: np.ndarray, at: int, end: int, classes: np.ndarray, max_digits: int) -> int:
    """Return where the word that begins at `at` ends: the alternatives of the pattern, in its order."""
    size, kind = _class_at(data, at, classes)
    if data[at] == 0x27:
        contraction = _contraction_end(data, at, end)
        if contraction > 0:
            return contraction
    if kind == LETTER:
        return _run_end(data, at + size, end, classes, LETTER, end)
    if kind == NUMBER:
        return _run_end(data, at + size, end, classes, NUMBER, max_digits - 1)
    after = at + size
    next_kind = OTHER if after >= end else _class_at(data, after, classes)[1]
    if kind != NEWLINE and after < end and next_kind == LETTER:
        return _run_end(data, after, end, classes, LETTER, end)
    if kind == OTHER or (data[at] == 0x20 and after < end and next_kind == OTHER):
        return _run_end(data, _run_end(data, after, end, classes, OTHER, end), end, classes, NEWLINE, end)
    return _space_end(data, at, end, classes)


@njit(cache=True)
def _contraction_end(data: np.ndarray, at: int, end: int) -> int:
    """Return where 's, 't, 're, 've, 'm, 'll or 'd ends, in either case; 0 where there is none."""
    if at + 1 >= end:
        return 0
    one = int(data[at + 1]) | 0x20
    if data[at + 1] >= 0x41 and (one == 0x73 or one == 0x74 or one == 0x6D or one == 0x64):
        return at + 2
    if at + 2 >= end or data[at + 1] < 0x41 or data[at + 2] < 0x41:
        return 0
    two = int(data[at + 2]) | 0x20
    if (two == 0x65 and (one == 0x72 or one == 0x76)) or (one == 0x6C and two == 0x6C):
        return at + 3
    return 0


@njit(cache=True)
def _space_end(data: np.ndarray, at: int, end: int, classes: np.ndarray) -> int:
    """Return where a word of white space ends: after its last line break, else before the last character that
    something else follows, else with the run."""
    here, last_start, after_newline = at, at, 0
    while here < end:
        size, kind = _class_at(data, here, classes)
        if kind != SPACE and kind != NEWLINE:
            break
        last_start = here
        here += size
        if kind == NEWLINE:
            after_newline = here
    if after_newline > 0:
        return after_newline
    return last_start if here < end and last_start > at else here


@njit(cache=True)
def hash_word(data: np.ndarray, start: int, stop: int) -> np.uint64:
    """Return a hash of a word's bytes (FNV-1a, its high half folded in)."""
    value = uint64(0xCBF29CE484222325) ^ uint64(stop - start)
    for at in range(start, stop):
        value = (value ^ uint64(data[at])) * uint64(0x100000001B3)
    return value ^ (value >> uint64(32))


@njit(cache=True)
def find_words(
    data: np.ndarray, starts: np.ndarray, stops: np.ndarray, slots: np.ndarray, entries: np.ndarray, arena: np.ndarray
) -> np.ndarray:
    """Return the entry (i8) of each word, -1 where it has none.

    Args:
        data: (bytes,) u1.
        starts: (words,) where each begins.
        stops: (words,) where each ends.
        slots: (a power of two,) i4 entry in each slot, -1 for none.
        entries: (entries, 4) i8: where the word's bytes begin in the arena, how many, where its ids begin, how many.
        arena: (bytes,) u1 of all words known.
    """
    found = np.empty(len(starts), np.int64)
    for word in range(len(starts)):
        slot = _slot_of(data, starts[word], stops[word], slots, entries, arena)
        found[word] = slots[slot]
    return found


@njit(cache=True)
def place_words(slots: np.ndarray, entries: np.ndarray, arena: np.ndarray, first: int, stop: int) -> None:
    """Give the entries from `first` to `stop`, none of which has one yet, their slots."""
    for entry in range(first, stop):
        begin = entries[entry, 0]
        slots[_slot_of(arena, begin, begin + entries[entry, 1], slots, entries, arena)] = entry


@njit(cache=True)
def _slot_of(data: np.ndarray, start: int, stop: int, slots: np.ndarray, entries: np.ndarray, arena: np.ndarray) -> int:
    """Return the slot that holds the word, or the free one where it belongs."""
    mask = uint64(len(slots) - 1)
    slot = hash_word(data, start, stop) & mask
    while True:
        entry = slots[slot]
        if entry < 0 or _is_word(data, start, stop, entries, entry, arena):
            return int(slot)
        slot = (slot + uint64(1)) & mask


@njit(cache=True)
def _is_word(data: np.ndarray, start: int, stop: int, entries: np.ndarray, entry: int, arena: np.ndarray) -> bool:
    size = stop - start
    if entries[entry, 1] != size:
        return False
    first = entries[entry, 0]
    for offset in range(size):  # noqa: SIM110 - numba compiles no generators
        if data[start + offset] != arena[first + offset]:
            return False
    return True


@njit(cache=True)
def gather_ids(found: np.ndarray, entries: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the ids (u4) of words by their entries, end to end."""
    total = 0
    for word in range(len(found)):
        total += entries[found[word], 3]
    result = np.empty(total, np.uint32)
    at = 0
    for word in range(len(found)):
        first, count = entries[found[word], 2], entries[found[word], 3]
        for offset in range(count):
            result[at + offset] = ids[first + offset]
        at += count
    return result
