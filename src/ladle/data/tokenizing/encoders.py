"""Text to token ids, in batches. `tokenizers` is the oracle; the others are faster and are held against it
(`agreement`): `tokenizers` with a memory for words (`memo`), and fastokens.

No special tokens are added here, and none are guarded against: a special token written out in a text becomes its id
in both engines.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from tokenizers import Tokenizer

from ladle.data.vocabulary import TOKENIZER_FILE
from ladle.errors import UserError

Engine = Literal["oracle", "hf", "fastokens"]
"""`hf` is the oracle with a memory, and the oracle itself where the tokenizer's words cannot be remembered."""


class Encoder(Protocol):
    """Encodes texts by one tokenizer."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts, end to end, as u4, and the number of ids of each text."""
        ...


class HfEncoder:
    """Hugging Face `tokenizers`."""

    def __init__(self, tokenizer_file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts, end to end, as u4, and the number of ids of each text."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        pieces = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        return np.concatenate([np.empty(0, np.uint32), *pieces]), np.array([len(piece) for piece in pieces], np.int64)


class FastokensEncoder:
    """fastokens; its flat buffers become arrays without a Python object a token."""

    def __init__(self, tokenizer_file: Path) -> None:
        from fastokens import Tokenizer as FastTokenizer

        self.tokenizer = FastTokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts, end to end, as u4, and the number of ids of each text."""
        ids, offsets = self.tokenizer.encode_batch_flat(list(texts))
        return np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64))


@functools.cache
def load_encoder(engine: Engine, folder: Path) -> Encoder:
    """Load an engine once a process.

    Raises:
        UserError: fastokens is not installed.
    """
    if engine == "oracle":
        return HfEncoder(folder / TOKENIZER_FILE)
    if engine == "hf":
        return _with_memory(load_encoder("oracle", folder))
    try:
        return FastokensEncoder(folder / TOKENIZER_FILE)
    except ModuleNotFoundError as error:
        raise UserError(
            "engine=fastokens, and fastokens is not installed", "pip install 'ladle[fast]', or set engine=hf"
        ) from error


def _with_memory(oracle: Encoder) -> Encoder:
    from ladle.data.tokenizing.memo import MemoEncoder, digits_of_a_word

    assert isinstance(oracle, HfEncoder)
    max_digits = digits_of_a_word(oracle.tokenizer)
    return oracle if max_digits is None else MemoEncoder(oracle.tokenizer, max_digits)


def put_in(ids: np.ndarray, lengths: np.ndarray, given: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Put the ids of some texts into their places among those of all texts.

    Args:
        ids: (sum of lengths,) u4 ids of all texts, end to end.
        lengths: (texts,) i8, the number of ids of each; 0 for the texts that are given.
        given: ids (u4) by the text's index.

    Returns:
        The ids and lengths with them.
    """
    stops = np.cumsum(lengths)
    pieces, at = [np.empty(0, np.uint32)], 0
    for index in sorted(given):
        pieces += [ids[at : stops[index]], given[index]]
        at = stops[index]
    lengths = lengths.copy()
    lengths[list(given)] = [len(of_text) for of_text in given.values()]
    return np.concatenate([*pieces, ids[at:]]), lengths
