"""Turns tiktoken and sentencepiece vocabularies into `tokenizers` ones with the same token ids.

tiktoken (`*.tiktoken`) lists each token's bytes with its rank, and merges the adjacent pair whose union has the lowest
rank. A `tokenizers` BPE lists pairs instead. One pair a token is enough, the last one that merging the token alone
comes to: inside bytes that end up as this token nothing is merged across their borders, so that they merge as they do
alone. What the file lacks (split pattern, normalization, special tokens) belongs to the tokenizer class that reads it:
`FAMILIES`.

sentencepiece (`tokenizer.model`) says itself which of its two algorithms it is for (unigram or BPE) and how text is
normalized; transformers decides by the tokenizer class instead, and reads a unigram model as BPE where the class is
Llama's. A BPE's pairs are every way of cutting a piece in two pieces, in the order of the scores. Source:
sentencepiece_model.proto. Where two segmentations have equal unigram scores, the libraries may choose differently.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import import_protobuf

from ladle.errors import UserError


@dataclass(frozen=True)
class Family:
    """What a tokenizer class adds to its tiktoken file."""

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
    )
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
    # the printable character that byte-level BPE writes for each byte (GPT-2's table)
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    characters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]

    def name(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    pairs = [_last_pair(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    merges = [(name(pair[0]), name(pair[1])) for pair in pairs if len(pair) == 2]
    vocabulary = {name(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
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


SPACE = "▁"
UNIGRAM, BPE = 1, 2
CONTROL, USER_DEFINED = 3, 4


def tokenizer_from_sentencepiece(path: Path) -> Tokenizer:
    """Return a tokenizer whose ids are sentencepiece's.

    Raises:
        UserError: the file is not a sentencepiece model, or one of an algorithm other than unigram and BPE.
    """
    definitions: Any = import_protobuf()
    proto = definitions.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is not a sentencepiece model: {error}", "fetch the file again") from error
    tokenizer = Tokenizer(_sentencepiece_model(proto, path))
    spec = proto.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for piece in proto.pieces:
        if piece.type in (CONTROL, USER_DEFINED):
            token = AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _sentencepiece_model(proto: Any, path: Path) -> models.Model:
    trainer = proto.trainer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if trainer.model_type == UNIGRAM:
        return models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    if trainer.model_type != BPE:
        raise UserError(
            f"{path} is a sentencepiece model of type {trainer.model_type}", "only unigram (1) and BPE (2) are read"
        )
    scores = dict(pieces)
    # the pairs of pieces that make a piece, best score first; among equals, in the order of the file
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += [(left, right) for left, right in cuts if left in scores and right in scores]
    return models.BPE(
        {piece: index for index, (piece, _) in enumerate(pieces)},
        merges,
        unk_token=trainer.unk_piece,
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )
