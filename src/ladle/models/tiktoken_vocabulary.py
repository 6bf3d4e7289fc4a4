"""Turns a tiktoken vocabulary (`*.tiktoken`) into a `tokenizers` one with the same token ids.

A tiktoken file lists each token's bytes with its rank, and merges the adjacent pair whose union has the lowest rank.
A `tokenizers` BPE lists pairs instead. One pair a token is enough, the last one that merging the token alone comes to:
inside bytes that end up as this token nothing is merged across their borders, so that they merge as they do alone.
What the file lacks (split pattern, normalization, special tokens) is a property of the tokenizer
class that reads it: `FAMILIES`.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ladle.errors import UserError


@dataclass(frozen=True)
class Family:
    """What a tokenizer class adds to its vocabulary file."""

    pattern: str
    """Regular expression of the pieces that BPE never merges across."""
    special_tokens: tuple[str, ...]
    """In id order, from the first id after the vocabulary."""
    nfc: bool
    """Whether text is brought to Unicode's composed form first."""


FAMILIES = {
    # tokenization_qwen.py of the Qwen and OpenSeek repositories
    "QWenTokenizer": Family(
        pattern=(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
        nfc=True,
    ),
}


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Return the rank of each token of a `*.tiktoken` file.

    Raises:
        UserError: a line is not `<base64> <rank>`, or the ranks are not 0, 1, 2, …
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{path}:{number} is not `<base64> <rank>`: {line[:60]!r}", "fetch the vocabulary file again"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"the ranks in {path} are not 0 to {len(ranks) - 1}", "fetch the vocabulary file again")
    return ranks


def tokenizer_from_tiktoken(ranks: dict[bytes, int], family: Family) -> Tokenizer:
    """Return a tokenizer whose ids are tiktoken's for the same ranks, pattern and special tokens (after NFC where the
    family says so)."""
    names = _byte_names()
    vocabulary = {_name(token, names): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(ranks, names), fuse_unk=False, ignore_merges=True))
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in family.special_tokens])
    return tokenizer


def _merges(ranks: dict[bytes, int], names: list[str]) -> list[tuple[str, str]]:
    """Return the last pair of each token that merging reaches, in the order of the ranks."""
    pairs = [_last_pair(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    return [(_name(pair[0], names), _name(pair[1], names)) for pair in pairs if len(pair) == 2]


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Merge the bytes of a token until two parts are left; more are left where merging never makes this token."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        unions = [left + right for left, right in pairwise(parts)]
        best = min(range(len(unions)), key=lambda at: ranks.get(unions[at], len(ranks)))
        if unions[best] not in ranks:
            break
        parts[best : best + 2] = [unions[best]]
    return parts


def _name(token: bytes, names: list[str]) -> str:
    return "".join(names[byte] for byte in token)


def _byte_names() -> list[str]:
    """Return the printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
