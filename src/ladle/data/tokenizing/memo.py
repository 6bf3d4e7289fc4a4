"""Hugging Face `tokenizers` with a memory: each different word goes through the tokenizer once.

Text repeats its words, and `tokenizers` spends about a microsecond on each all the same. Where the tokenizer is a
byte-level BPE that cuts text by a known pattern, a scanner makes the cut (`ladle.data.tokenizing.words`); the ids of a
word come from the tokenizer's model the first time and from a table after that. Texts with special tokens in them
go to the tokenizer whole, and so do lines with characters whose class or normalization may differ between versions of
Unicode.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE

from ladle.data.tokenizing.encoders import put_in
from ladle.data.tokenizing.words import PATTERNS, character_classes, find_words, gather_ids, place_words, split_texts

MOST_WORDS = 2**19
MOST_BYTES = 2**25
"""Of words known; past either, the table is emptied and fills again."""
GROUP_BYTES = 2**19
"""Of texts cut at once: with what is noted of their words, they fit in a core's cache."""
NOTHING = (np.empty(0, np.uint32), np.empty(0, np.int64))


def digits_of_a_word(tokenizer: Tokenizer) -> int | None:
    """Return how many digits make up a word, or None where the tokenizer is not of the kind whose words can be
    remembered."""
    model = tokenizer.model
    if not isinstance(model, BPE) or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if _state(tokenizer.normalizer) not in (None, {"type": "NFC"}):
        return None
    steps = (_state(tokenizer.pre_tokenizer) or {}).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, byte_level = steps
    if split["behavior"] != "Isolated" or split["invert"] or byte_level["add_prefix_space"] or byte_level["use_regex"]:
        return None
    return PATTERNS.get(split["pattern"].get("Regex", ""))


def _state(part: Any) -> dict[str, Any] | None:
    """Return a part of a tokenizer as it stands in tokenizer.json."""
    return None if part is None else json.loads(part.__getstate__())


class MemoEncoder:
    """Encodes as `tokenizer` does.

    Args:
        tokenizer: byte-level BPE whose words are cut by one of `PATTERNS`.
        max_digits: of `digits_of_a_word`.
    """

    def __init__(self, tokenizer: Tokenizer, max_digits: int) -> None:
        self.tokenizer, self.model, self.max_digits = tokenizer, tokenizer.model, max_digits
        self.has_special = _finder([token.content for token in tokenizer.get_added_tokens_decoder().values()])
        self.classes = character_classes()
        self._forget()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts, end to end, as u4, and the number of ids of each text."""
        special = [index for index, text in enumerate(texts) if self.has_special(text)]
        encoded = [text.encode() for text in texts]
        for index in special:
            encoded[index] = b""
        ids, lengths = zip(NOTHING, *map(self._encode_some, _in_groups(encoded)), strict=True)
        whole = {index: np.array(self._encode_whole(texts[index]), np.uint32) for index in special}
        return put_in(np.concatenate(ids), np.concatenate(lengths), whole)

    def _encode_some(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        if self.num_words > MOST_WORDS or self.num_bytes > MOST_BYTES:
            self._forget()
        text_stops = np.cumsum([0, *map(len, texts)], dtype=np.int64)[1:]
        data = np.frombuffer(b"".join(texts), np.uint8)
        stops, are_lines, counts = split_texts(data, text_stops, self.classes, self.max_digits)
        found = self._find(data, stops, are_lines)
        return gather_ids(found, self.entries, self.ids), _sums(self.entries[found, 3], counts)

    def _encode_whole(self, text: str) -> list[int]:
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _find(self, data: np.ndarray, stops: np.ndarray, are_lines: np.ndarray) -> np.ndarray:
        """Return the entries of words, of new ones too."""
        starts = np.concatenate([[0], stops[:-1]]) if len(stops) else stops
        found = find_words(data, starts, stops, self.slots, self.entries, self.arena)
        new = np.flatnonzero(found < 0)
        if len(new):
            learnt: dict[bytes, int] = {}
            raw = data.tobytes()
            for word, start, stop, is_line in zip(
                new.tolist(), starts[new].tolist(), stops[new].tolist(), are_lines[new].tolist(), strict=True
            ):
                content = raw[start:stop]
                if content not in learnt:
                    learnt[content] = self._add(content, is_line)
                found[word] = learnt[content]
            self._place(self.num_words - len(learnt))
        return found

    def _add(self, word: bytes, is_line: bool) -> int:
        """Return the entry of a new word or line; it has no slot yet."""
        ids = self._encode_whole(word.decode()) if is_line else self._ids_of_word(word)
        entry = self.num_words
        self.arena = _grown(self.arena, self.num_bytes + len(word))
        self.ids = _grown(self.ids, self.num_ids + len(ids))
        self.entries = _grown(self.entries, entry + 1)
        self.arena[self.num_bytes : self.num_bytes + len(word)] = np.frombuffer(word, np.uint8)
        self.ids[self.num_ids : self.num_ids + len(ids)] = ids
        self.entries[entry] = (self.num_bytes, len(word), self.num_ids, len(ids))
        self.num_words, self.num_bytes, self.num_ids = entry + 1, self.num_bytes + len(word), self.num_ids + len(ids)
        return entry

    def _ids_of_word(self, word: bytes) -> list[int]:
        return [token.id for token in self.model.tokenize(word.decode("latin-1").translate(BYTE_LEVEL))]

    def _place(self, first: int) -> None:
        """Give the entries from `first` on their slots, at least two for each."""
        if 2 * self.num_words > len(self.slots):
            self.slots, first = np.full(_power_of_two(4 * self.num_words), -1, np.int32), 0
        place_words(self.slots, self.entries, self.arena, first, self.num_words)

    def _forget(self) -> None:
        self.slots = np.full(2**12, -1, np.int32)
        self.entries = np.empty((2**12, 4), np.int64)
        self.arena, self.ids = np.empty(2**16, np.uint8), np.empty(2**14, np.uint32)
        self.num_words = self.num_bytes = self.num_ids = 0


def _in_groups(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yield the texts in groups of about GROUP_BYTES."""
    group: list[bytes] = []
    held = 0
    for text in texts:
        group.append(text)
        held += len(text)
        if held >= GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _finder(contents: list[str]) -> Callable[[str], bool]:
    """Return what tells whether a text holds any of the strings."""
    if not contents:
        return lambda text: False
    common = os.path.commonprefix(contents)
    search = re.compile("|".join(map(re.escape, contents))).search
    return lambda text: common in text and search(text) is not None


def _sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the sums of consecutive runs of values."""
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    stops = np.cumsum(counts)
    return totals[stops] - totals[stops - counts]


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    """Return the array with room for `size` items."""
    if size <= len(array):
        return array
    larger = np.empty((max(size, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


def _byte_level() -> dict[int, int]:
    """Return the characters that byte-level tokenizers write bytes as (GPT-2's bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {byte: 256 + index for index, byte in enumerate(others)}


BYTE_LEVEL = _byte_level()
