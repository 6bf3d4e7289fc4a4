"""Finds training documents that hold text of benchmark items: any run of n words shared (13, as in arXiv 2005.14165,
appendix C).

The search reads the same pieces as tokenizing does, and apart from it: other benchmarks tokenize nothing again.

Words are runs of letters and digits in lower case; each Chinese, Japanese or Korean character is a word of its own;
everything else separates. So punctuation, markup, case and spacing do not hide a copy. An n-gram is a 64-bit
polynomial of its words' hashes, which are polynomials of their code points; at 200 thousand n-grams looked for
among ten thousand million, a chance match has probability 1e-4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ladle.artifacts.files import canonical_json
from ladle.data.config import SourceConfig
from ladle.data.documents import Document, read_documents
from ladle.data.encoders import Vocabulary, load_oracle
from ladle.data.rows import Piece
from ladle.errors import UserError
from ladle.evaluation.benchmark import builtin_benchmarks, load_items
from ladle.executors import Executor
from ladle.log import progress

CONTAMINATION_FILE = "contamination.jsonl"
BASE = 0x9E3779B97F4A7C15
# Odd, so that its powers have inverses: a word's hash does not depend on where in a text it stands.
CHARACTER_BASE = 0xD1342543DE82EF95
# Size of the table that rules out most n-grams without a search: 1 MiB, which fits in a core's cache.
FILTER_BITS = 20
SHIFT = 64 - FILTER_BITS
SEPARATES, IN_WORD, ALONE = range(3)  # what a character does
TEXTS_AT_A_TIME = 64
WORDS_AT_A_TIME = 2**13


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
    of_texts, owners = ngram_hashes([text.text for text in texts], num_words)
    is_long_enough = np.bincount(owners, minlength=len(texts)) > 0
    hashes, firsts = np.unique(of_texts, return_index=True)
    owners = owners[firsts]
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
    short = Counter(texts[index].benchmark for index in np.flatnonzero(~is_long_enough))
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
    documents = read_documents(piece, source, vocabulary.folder)
    while texts := [_text_of(document, vocabulary) for document in islice(documents, TEXTS_AT_A_TIME)]:
        finds += [(num_rows + index, count, first) for index, count, first in ngrams.find(texts)]
        num_rows += len(texts)
    return num_rows, finds


def _text_of(document: Document, vocabulary: Vocabulary) -> str:
    if isinstance(document, list):
        return load_oracle(vocabulary.folder).tokenizer.decode(document)
    return document if isinstance(document, str) else ""


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

    def find(self, texts: Sequence[str]) -> list[tuple[int, int, int]]:
        """Return, for each text that has some of the n-grams: its index, how many, and the index in `hashes` of the
        first one."""
        ngrams, owners = ngram_hashes(texts, self.num_words)
        likely = np.flatnonzero(self._may_hold[ngrams >> SHIFT])
        places = np.searchsorted(self.hashes, ngrams[likely]).clip(max=len(self.hashes) - 1)
        is_found = self.hashes[places] == ngrams[likely]
        indices, firsts, counts = np.unique(owners[likely][is_found], return_index=True, return_counts=True)
        return list(zip(indices.tolist(), counts.tolist(), places[is_found][firsts].tolist(), strict=True))


def ngram_hashes(texts: Sequence[str], num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash (u8) of each run of `num_words` words within a text, in order, and the index of its text."""
    lowered = [text.lower() for text in texts]
    words, starts = _hash_words("\n".join(lowered))
    owners = np.searchsorted(np.cumsum([len(text) + 1 for text in lowered]), starts, "right")
    count = max(0, len(words) - num_words + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(num_words):
        hashes = hashes * BASE + words[place : place + count]
    is_within = owners[:count] == owners[num_words - 1 :]
    return hashes[is_within], owners[:count][is_within]


def _hash_words(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of each word, and where it begins."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kinds = _kinds_of_characters()[points]
    before = np.roll(kinds, 1)
    before[:1] = SEPARATES
    starts = np.flatnonzero((kinds == ALONE) | ((kinds == IN_WORD) & (before != IN_WORD)))
    words, ends = np.empty(len(starts), np.uint64), np.append(starts[1:], len(points))
    for first in range(0, len(starts), WORDS_AT_A_TIME):
        some = slice(first, first + WORDS_AT_A_TIME)
        begin, end = starts[some][0], ends[some][-1]
        characters = points[begin:end] * (kinds[begin:end] != SEPARATES)
        powers, inverse_powers = _powers(int(end - begin).bit_length())
        sums = np.add.reduceat(characters * powers[: end - begin], starts[some] - begin)
        words[some] = sums * inverse_powers[starts[some] - begin]
    return words, starts


@lru_cache(maxsize=2)
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first 2 ** bits powers of the characters' base, and their inverses, modulo 2 ** 64."""
    bases = CHARACTER_BASE, pow(CHARACTER_BASE, -1, 2**64)
    powers, inverses = (np.cumprod(np.full(2**bits, base, np.uint64)) for base in bases)
    return powers, inverses


@cache
def _kinds_of_characters() -> np.ndarray:
    """Return of each code point what it does (u1): ASCII letters and digits, and what lies beyond Latin-1's and general
    punctuation, are in words; kana, ideographs and Hangul syllables are words of their own."""
    kinds = np.full(0x110000, IN_WORD, np.uint8)
    separate = [(0, 0x2F), (0x3A, 0x60), (0x7B, 0xBF), (0x2000, 0x2BFF), (0x3000, 0x303F)]
    separate += [(0xFE10, 0xFE6F), (0xFF00, 0xFF0F), (0xFF1A, 0xFF20)]
    alone = [(0x3040, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)]
    for kind, ranges in ((SEPARATES, separate), (ALONE, alone)):
        for first, last in ranges:
            kinds[first : last + 1] = kind
    return kinds
