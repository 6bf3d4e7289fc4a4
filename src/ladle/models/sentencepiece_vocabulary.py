"""Turns a sentencepiece model (`tokenizer.model`) into a `tokenizers` one with the same token ids.

The file itself says which of the two algorithms it is for (unigram or BPE) and how text is normalized; what
transformers makes of it goes by the tokenizer class instead, and reads a unigram model as BPE where the class is
Llama's. A BPE's pairs are every way of cutting a piece in two pieces, in the order of the scores. Source:
sentencepiece_model.proto. Where two segmentations have equal unigram scores, the libraries may choose differently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers.convert_slow_tokenizer import import_protobuf

from ladle.errors import UserError

SPACE = "▁"
UNIGRAM, BPE = 1, 2
CONTROL, USER_DEFINED = 3, 4


def tokenizer_from_sentencepiece(path: Path) -> Tokenizer:
    """Return a tokenizer whose ids are sentencepiece's.

    Raises:
        UserError: the file is not a sentencepiece model, or one of an algorithm other than unigram and BPE.
    """
    proto = _read(path)
    tokenizer = Tokenizer(_make_model(proto, path))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(proto.normalizer_spec))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for piece in proto.pieces:
        if piece.type in (CONTROL, USER_DEFINED):
            token = AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _read(path: Path) -> Any:
    definitions: Any = import_protobuf()
    proto = definitions.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is not a sentencepiece model: {error}", "fetch the file again") from error
    return proto


def _make_model(proto: Any, path: Path) -> models.Model:
    trainer = proto.trainer_spec
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    if trainer.model_type == UNIGRAM:
        return models.Unigram(scores, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    if trainer.model_type != BPE:
        raise UserError(
            f"{path} is a sentencepiece model of type {trainer.model_type}", "only unigram (1) and BPE (2) are read"
        )
    return models.BPE(
        {piece: index for index, (piece, _) in enumerate(scores)},
        _merges(dict(scores)),
        unk_token=trainer.unk_piece,
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return the pairs of pieces that make a piece, best score first; among equals, as the pieces stand in the file."""
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += [(left, right) for left, right in cuts if left in scores and right in scores]
    return merges


def _normalizers(spec: Any) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]
