"""Finds training documents that hold text of benchmark items: any run of n words shared (13, as in arXiv 2005.14165,
appendix C).

The search reads the same pieces as tokenizing does and keeps its finds by content, apart from the token shards: other
benchmarks tokenize nothing again, other ratios search nothing again.

Words are runs of letters and digits in lower case; each Chinese, Japanese or Korean character is a word of its own;
everything else separates. So punctuation, markup, case and spacing do not hide a copy. An n-gram is a 64-bit
polynomial of its words' hashes (FNV-1a over code points), rolled along the text; at 200 thousand n-grams looked for
among ten thousand million, a chance match has probability 1e-4.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit, uint64

from ladle.artifacts.files import canonical_json, hash_bytes
from ladle.artifacts.journal import ShardJournal
from ladle.data.config import SourceConfig
from ladle.data.documents import format_identity, read_documents
from ladle.data.encoders import Vocabulary, load_oracle
from ladle.data.rows import Piece
from ladle.errors import UserError
from ladle.evaluation.benchmark import builtin_benchmarks, load_items
from ladle.executors import Executor

CONTAMINATION_FILE = "contamination.jsonl"
SEARCH_VERSION = 3
FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
BASE = np.uint64(0x9E3779B97F4A7C15)
FILTER_BITS = 20
"""Size of the table that rules out most n-grams without a search: 1 MiB, which fits in a core's cache."""


class BenchmarkText(NamedTuple):
    """The text of one benchmark item: its question, and its solution where it has one."""

    benchmark: str
    item: str
    text: str


@dataclass(frozen=True)
class Contamination:
    """What was found."""

    documents: list[np.ndarray]
    """For each source, the numbers of its documents that share an n-gram with an item, increasing."""
    finds: list[dict[str, Any]]
    """Each such document: source, document, ngrams shared, and the benchmark and item of the first one."""
    summary: dict[str, dict[str, int]]
    """For each benchmark: items, items_too_short to be searched for, documents that share text with it."""

    def write(self, out: Path) -> None:
        """Write contamination.jsonl: one line a document."""
        lines = (canonical_json(find) + "\n" for find in self.finds)
        (out / CONTAMINATION_FILE).write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class _SearchTask:
    piece: Piece
    source: SourceConfig
    vocabulary: Vocabulary
    hashes_file: Path
    num_words: int
    digest: str
    """Hash of the n-grams looked for."""

    def name(self) -> str:
        identity = {
            "piece": self.piece.digest,
            "format": format_identity(self.source, self.vocabulary),
            "tokenizer": self.vocabulary.digest if self.source.format == "input_ids" else None,
            "ngrams": self.digest,
            "version": SEARCH_VERSION,
        }
        return hash_bytes(canonical_json(identity).encode())[:40] + ".finds"


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
    sources: Sequence[tuple[SourceConfig, Sequence[Piece]]],
    texts: Iterable[BenchmarkText],
    num_words: int,
    vocabulary: Vocabulary,
    kept: Path,
    executor: Executor,
) -> Contamination:
    """Search all documents for the n-grams of the items.

    Args:
        sources: each source and its pieces.
        texts: the items to look for.
        num_words: n.
        vocabulary: reads documents that are token ids, and renders chats.
        kept: folder of finds by content, which other mixtures may share.
        executor: where pieces are searched.
    """
    texts = list(texts)
    of_texts = [ngram_hashes(text.text, num_words) for text in texts]
    hashes, firsts = np.unique(np.concatenate([np.empty(0, np.uint64), *of_texts]), return_index=True)
    owners = np.repeat(np.arange(len(texts)), [len(of_text) for of_text in of_texts])[firsts]
    digest = hash_bytes(hashes.tobytes() + num_words.to_bytes(4, "little"))
    kept.mkdir(parents=True, exist_ok=True)
    hashes_file = kept / f"{digest[:40]}.npy"
    np.save(hashes_file, hashes)
    tasks = [
        [_SearchTask(piece, source, vocabulary, hashes_file, num_words, digest) for piece in pieces]
        for source, pieces in sources
    ]
    by_name = {task.name(): task for of_source in tasks for task in of_source}
    finished = ShardJournal(kept).run(by_name, _search_piece, executor, "searching for benchmark items")
    finds: list[dict[str, Any]] = []
    documents: list[np.ndarray] = []
    for (source, _), of_source in zip(sources, tasks, strict=True):
        found = _read_finds([finished[task.name()] for task in of_source])
        documents.append(np.array([row for row, _, _ in found], np.int64))
        for row, count, first in found:
            benchmark, item, _ = texts[owners[first]]
            place = {"source": source.name, "document": row, "ngrams": count}
            finds.append(place | {"benchmark": benchmark, "item": item})
    items = Counter(text.benchmark for text in texts)
    short = Counter(text.benchmark for text, of_text in zip(texts, of_texts, strict=True) if len(of_text) == 0)
    sharing = Counter(find["benchmark"] for find in finds)
    summary = {
        name: {"items": items[name], "items_too_short": short[name], "documents": sharing[name]}
        for name in sorted(items)
    }
    return Contamination(documents, finds, summary)


def _search_piece(task: _SearchTask, out: Path) -> None:
    ngrams = _load_ngrams(task.hashes_file, task.num_words)
    row = 0
    with out.open("w", encoding="utf-8") as stream:
        for documents in read_documents(task.piece, task.source, task.vocabulary.folder):
            for document in documents:
                if isinstance(document, list):
                    document = load_oracle(task.vocabulary.folder).tokenizer.decode(document)
                count, first = ngrams.find(document) if isinstance(document, str) else (0, -1)
                if count:
                    stream.write(canonical_json([row, count, first]) + "\n")
                row += 1
        stream.write(canonical_json({"rows": row}) + "\n")


@functools.cache
def _load_ngrams(path: Path, num_words: int) -> NgramSet:
    return NgramSet(np.load(path), num_words)


def _read_finds(paths: Sequence[Path]) -> list[tuple[int, int, int]]:
    """Return (document number in the source, n-grams shared, index of the first) for each find."""
    finds, before = [], 0
    for path in paths:
        *lines, last = path.read_text(encoding="utf-8").splitlines()
        finds += [(before + row, count, first) for row, count, first in map(json.loads, lines)]
        before += json.loads(last)["rows"]
    return finds


# n-grams of words, at compiled speed.


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
