"""Finds training documents that hold text of benchmark items: any run of n words shared (13, as in arXiv 2005.14165,
appendix C).

The search reads the same pieces as tokenizing does, and apart from it: other benchmarks tokenize nothing again.

Words are runs of letters and digits in lower case; each Chinese, Japanese or Korean character is a word of its own;
everything else separates. So punctuation, markup, case and spacing do not hide a copy. An n-gram is a 64-bit
polynomial of its words' hashes (FNV-1a over code points); at 200 thousand n-grams looked for
among ten thousand million, a chance match has probability 1e-4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit, uint64

from ladle.artifacts.files import canonical_json
from ladle.data.config import SourceConfig
from ladle.data.documents import read_documents
from ladle.data.encoders import Vocabulary, load_oracle
from ladle.data.rows import Piece
from ladle.errors import UserError
from ladle.evaluation.benchmark import builtin_benchmarks, load_items
from ladle.executors import Executor
from ladle.log import progress

CONTAMINATION_FILE = "contamination.jsonl"
FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
BASE = np.uint64(0x9E3779B97F4A7C15)
# Size of the table that rules out most n-grams without a search: 1 MiB, which fits in a core's cache.
FILTER_BITS = 20
SHIFT = np.uint64(64 - FILTER_BITS)


class BenchmarkText(NamedTuple):
    """The text of one benchmark item: its question, and its solution where it has one."""

    benchmark: str
    item: str
    text: str


@dataclass(frozen=True)
class Contamination:
    """What was found.

    Attributes:
        documents: for each source, the numbers of its documents that share an n-gram with an item, increasing.
        finds: each such document: source, document, ngrams shared, and the benchmark and item of the first one.
        summary: for each benchmark: items, items_too_short to be searched for, documents that share text with it.
    """

    documents: list[np.ndarray]
    finds: list[dict[str, Any]]
    summary: dict[str, dict[str, int]]

    def write(self, out: Path) -> None:
        """Write contamination.jsonl: one line a document."""
        lines = (canonical_json(find) + "\n" for find in self.finds)
        (out / CONTAMINATION_FILE).write_text("".join(lines), encoding="utf-8")


def read_benchmark_texts(names: Sequence[str], paths: list[Path]) -> Iterator[BenchmarkText]:
    """Yield question and solution of every item of the named benchmarks.

    Args:
        names: built-in benchmarks.
        paths: the folder that holds `<name>/test.jsonl`, or the files.

    Raises:
        UserError: an unknown name, or a benchmark that is not there.
    """
    known = builtin_benchmarks()
    for name in names:
        if name not in known:
            raise UserError(f"there is no benchmark {name!r}", f"use {', '.join(known)}")
        for item in load_items(known[name], paths):
            yield BenchmarkText(name, str(item.idx), f"{item.question}\n{item.solution}")


def find_contamination(
    sources: Sequence[SourceConfig],
    pieces: Sequence[Sequence[Piece]],
    texts: Iterable[BenchmarkText],
    num_words: int,
    vocabulary: Vocabulary,
    executor: Executor,
) -> Contamination:
    """Search all documents for the n-grams of the items.

    Args:
        sources: where documents come from.
        pieces: the pieces of each source.
        texts: the items to look for.
        num_words: n.
        vocabulary: reads documents that are token ids, and renders chats.
        executor: where pieces are searched.
    """
    texts = list(texts)
    of_texts = [ngram_hashes(text.text, num_words) for text in texts]
    hashes, firsts = np.unique(np.concatenate([np.empty(0, np.uint64), *of_texts]), return_index=True)
    owners = np.repeat(np.arange(len(texts)), [len(of_text) for of_text in of_texts])[firsts]
    search = partial(_search_piece, NgramSet(hashes, num_words), vocabulary)
    tasks = [(source, piece) for source, of_source in zip(sources, pieces, strict=True) for piece in of_source]
    finds: list[dict[str, Any]] = []
    rows_before = Counter[str]()
    with progress(total=len(tasks), description="searching for benchmark items", unit="shards") as bar:
        for (source, _), (num_rows, found) in zip(tasks, executor.map(search, tasks), strict=True):
            for row, count, first in found:
                benchmark, item, _ = texts[owners[first]]
                place = {"source": source.name, "document": rows_before[source.name] + row, "ngrams": count}
                finds.append(place | {"benchmark": benchmark, "item": item})
            rows_before[source.name] += num_rows
            bar.advance(1)
    documents = [
        np.array([find["document"] for find in finds if find["source"] == source.name], np.int64) for source in sources
    ]
    items = Counter(text.benchmark for text in texts)
    short = Counter(text.benchmark for text, of_text in zip(texts, of_texts, strict=True) if len(of_text) == 0)
    sharing = Counter(find["benchmark"] for find in finds)
    summary = {
        name: {"items": items[name], "items_too_short": short[name], "documents": sharing[name]}
        for name in sorted(items)
    }
    return Contamination(documents, finds, summary)


def _search_piece(
    ngrams: NgramSet, vocabulary: Vocabulary, task: tuple[SourceConfig, Piece]
) -> tuple[int, list[tuple[int, int, int]]]:
    """Return the number of rows, and (row, n-grams shared, index of the first) for each find."""
    finds, num_rows, (source, piece) = [], 0, task
    for num_rows, document in enumerate(read_documents(piece, source, vocabulary.folder), start=1):
        if isinstance(document, list):
            document = load_oracle(vocabulary.folder).tokenizer.decode(document)
        count, first = ngrams.find(document) if isinstance(document, str) else (0, -1)
        if count:
            finds.append((num_rows - 1, count, first))
    return num_rows, finds


# n-grams of words, at compiled speed.


def ngram_hashes(text: str, num_words: int) -> np.ndarray:
    """Return the hash (u8) of each run of `num_words` words, in order; none for a shorter text."""
    return _hash_ngrams(np.frombuffer(text.lower().encode("utf-32-le"), np.uint32), num_words)


class NgramSet:
    """n-grams to look for.

    Args:
        hashes: (n,) u8, sorted, each once.
        num_words: n.
    """

    def __init__(self, hashes: np.ndarray, num_words: int) -> None:
        self.hashes, self.num_words = hashes, num_words
        self._may_hold = np.zeros(2**FILTER_BITS, np.bool_)
        self._may_hold[hashes >> SHIFT] = True

    def find(self, text: str) -> tuple[int, int]:
        """Return how many n-grams of a text are in the set, and the index in `hashes` of the first one (-1 for
        none)."""
        ngrams = ngram_hashes(text, self.num_words)
        likely = ngrams[self._may_hold[ngrams >> SHIFT]]
        places = np.searchsorted(self.hashes, likely).clip(max=len(self.hashes) - 1)
        found = places[self.hashes[places] == likely]
        return len(found), int(found[0]) if len(found) else -1


@njit(cache=True)
def _hash_ngrams(points: np.ndarray, num_words: int) -> np.ndarray:
    words = _hash_words(points)
    result = np.zeros(max(0, len(words) - num_words + 1), np.uint64)
    for index in range(len(result)):
        for word in words[index : index + num_words]:
            result[index] = result[index] * BASE + word
    return result


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
