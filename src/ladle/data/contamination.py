"""Finds training documents that hold text of benchmark items: any run of n words shared (13, as in arXiv 2005.14165,
appendix C).

The search reads the same pieces as tokenizing does and keeps its finds by content, apart from the token shards: other
benchmarks tokenize nothing again, other ratios search nothing again.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ladle.artifacts.files import canonical_json, hash_bytes
from ladle.artifacts.journal import ShardJournal
from ladle.data.config import SourceConfig
from ladle.data.documents import Document, columns_of, format_identity, make_formatter, to_document
from ladle.data.ngrams import NgramSet, ngram_hashes
from ladle.data.rows import Piece, read_piece
from ladle.data.vocabulary import TOKENIZER_FILE, Vocabulary
from ladle.errors import UserError
from ladle.evaluation.benchmark import builtin_benchmarks, load_items
from ladle.executors import Executor

CONTAMINATION_FILE = "contamination.jsonl"
SEARCH_VERSION = 3


@dataclass(frozen=True)
class BenchmarkText:
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
            text = texts[owners[first]]
            place = {"source": source.name, "document": row, "ngrams": count}
            finds.append(place | {"benchmark": text.benchmark, "item": text.item})
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
    formatter = make_formatter(task.source, task.vocabulary.folder)
    row = 0
    with out.open("w", encoding="utf-8") as stream:
        for rows in read_piece(task.piece, columns_of(task.source)):
            for document in (to_document(one, formatter) for one in rows):
                count, first = ngrams.find(_text_of(document, task.vocabulary.folder))
                if count:
                    stream.write(canonical_json([row, count, first]) + "\n")
                row += 1
        stream.write(canonical_json({"rows": row}) + "\n")


def _text_of(document: Document, tokenizer_folder: Path) -> str:
    if isinstance(document, str):
        return document
    return _load_tokenizer(tokenizer_folder).decode(document) if isinstance(document, list) else ""


@functools.cache
def _load_ngrams(path: Path, num_words: int) -> NgramSet:
    return NgramSet(np.load(path), num_words)


@functools.cache
def _load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / TOKENIZER_FILE))


def _read_finds(paths: Sequence[Path]) -> list[tuple[int, int, int]]:
    """Return (document number in the source, n-grams shared, index of the first) for each find."""
    finds, before = [], 0
    for path in paths:
        *lines, last = path.read_text(encoding="utf-8").splitlines()
        finds += [(before + row, count, first) for row, count, first in map(json.loads, lines)]
        before += json.loads(last)["rows"]
    return finds
