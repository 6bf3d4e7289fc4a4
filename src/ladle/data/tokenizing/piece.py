"""Tokenizes pieces into shards. A shard depends on the piece, the tokenizer and the format alone, and is named by
their hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ladle.artifacts.files import canonical_json, hash_bytes
from ladle.data.config import SourceConfig
from ladle.data.rows import Piece, Unreadable, read_piece
from ladle.data.sources.documents import Document, columns_of, format_identity, make_formatter, to_document
from ladle.data.store.shards import ShardWriter
from ladle.data.tokenizing.agreement import Disagreement, PieceSample, load_checked_encoder, require_agreement
from ladle.data.tokenizing.encoders import Engine, load_encoder, put_in
from ladle.data.tokenizing.long_text import PART_CHARS, encode_long
from ladle.data.vocabulary import Vocabulary
from ladle.log import get_logger

logger = get_logger(__name__)

SHARD_FORMAT = 1
BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class TokenizeTask:
    """Everything that one shard is made of; picklable."""

    piece: Piece
    source: SourceConfig
    vocabulary: Vocabulary
    add_bos: bool
    engine: Engine

    def name(self) -> str:
        """Return the shard's file name, from the hash of all that decides its bytes."""
        identity: dict[str, Any] = {
            "piece": self.piece.digest,
            "format": format_identity(self.source, self.vocabulary),
            "tokenizer": self.vocabulary.digest,
            "eos": self.vocabulary.eos_id,
            "bos": self.vocabulary.bos_id if self.add_bos else None,
            "dtype": self.vocabulary.token_dtype,
            "version": SHARD_FORMAT,
        }
        return hash_bytes(canonical_json(identity).encode())[:40] + ".tokens"


def tokenize_piece(task: TokenizeTask, out: Path) -> None:
    """Write the token shard of one piece.

    A fast engine that disagrees with the oracle anywhere in the sample is put aside for the piece, and a warning says
    so.

    Raises:
        UserError: a damaged file, a missing column, no chat template.
    """
    try:
        _tokenize_with(task.engine, task, out)
    except Disagreement as difference:
        logger.warning(
            "engine %s is not used for %s of source %s: %s. Going on with tokenizers alone, which is slower",
            task.engine, task.piece.path, task.source.name, difference,
        )  # fmt: skip
        _tokenize_with("oracle", task, out)


def _tokenize_with(engine: Engine, task: TokenizeTask, out: Path) -> None:
    encoder = _DocumentEncoder(engine, task)
    with out.open("wb", buffering=BUFFER_BYTES) as stream:
        writer = ShardWriter(stream, task.vocabulary.token_dtype)
        for documents in _documents(task):
            tokens, lengths = encoder.encode(documents)
            for index in np.flatnonzero(lengths == 0).tolist():
                document = documents[index]
                writer.note_dropped(
                    writer.num_rows + index, document.reason if isinstance(document, Unreadable) else "empty"
                )
            writer.write(tokens, lengths)
        writer.finish()


def _documents(task: TokenizeTask) -> Iterator[list[Document]]:
    formatter = make_formatter(task.source, task.vocabulary.folder)
    first = 1
    for rows in read_piece(task.piece, columns_of(task.source)):
        try:
            documents = [to_document(row, formatter) for row in rows]
        except Exception as error:  # a formatting function's own: it keeps its traceback, and learns where it was
            error.add_note(f"in one of rows {first}-{first + len(rows) - 1} of a piece of {task.piece.path}")
            raise
        yield documents
        first += len(rows)


class _DocumentEncoder:
    """Encodes batches of documents, comparing a sample with the oracle where the engine is another."""

    def __init__(self, engine: Engine, task: TokenizeTask) -> None:
        self.encoder = load_checked_encoder(engine, task.vocabulary.folder)
        self.oracle = load_encoder("oracle", task.vocabulary.folder)
        self.sample = PieceSample()
        self.eos_id = task.vocabulary.eos_id
        self.bos_id = task.vocabulary.bos_id if task.add_bos else None

    def encode(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all documents, end to end, bos and eos included, and the length of each (0 where there is
        none)."""
        texts = [document for document in documents if isinstance(document, str)]
        ids, text_lengths = self._encode_texts(texts)
        if len(texts) == len(documents):
            return add_boundaries(ids, text_lengths, self.eos_id, self.bos_id)
        lengths = np.zeros(len(documents), np.int64)
        lengths[[isinstance(document, str) for document in documents]] = text_lengths
        given = [np.array(document, np.uint32) for document in documents if isinstance(document, list)]
        lengths[[isinstance(document, list) for document in documents]] = [len(one) for one in given]
        return add_boundaries(np.concatenate([ids, *given]), lengths, self.eos_id, self.bos_id)

    def _encode_texts(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.encoder is not self.oracle:
            require_agreement(self.encoder, self.oracle, self.sample.draw(texts))
        ids, lengths = self.encoder.encode([text if len(text) <= PART_CHARS else "" for text in texts])
        return put_in(
            ids,
            lengths,
            {
                index: np.concatenate(list(encode_long(text, self.encoder)))
                for index, text in enumerate(texts)
                if len(text) > PART_CHARS
            },
        )


def add_boundaries(
    ids: np.ndarray, lengths: np.ndarray, eos_id: int, bos_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Put eos after each document (unless it ends with one) and bos before it (unless it begins with one).

    Args:
        ids: (sum of lengths,) ids of the documents, end to end.
        lengths: (documents,) their lengths; a document of length 0 stays so.
        eos_id: token that ends a document.
        bos_id: token that begins one, or None for none.

    Returns:
        The ids and lengths with the boundaries.
    """
    stops = np.cumsum(lengths)
    there = np.flatnonzero(lengths)
    ends = np.zeros(len(lengths), np.int64)
    ends[there] = ids[stops[there] - 1] != eos_id
    begins = np.zeros(len(lengths), np.int64)
    if bos_id is not None:
        begins[there] = ids[(stops - lengths)[there]] != bos_id
    bounded = lengths + begins + ends
    bounded_stops = np.cumsum(bounded)
    result = np.empty(bounded_stops[-1] if len(bounded) else 0, ids.dtype)
    is_text = np.ones(len(result), bool)
    at_end, at_begin = (bounded_stops - 1)[ends == 1], (bounded_stops - bounded)[begins == 1]
    is_text[at_end] = is_text[at_begin] = False
    result[is_text], result[at_end] = ids, eos_id
    if bos_id is not None:
        result[at_begin] = bos_id
    return result, bounded
