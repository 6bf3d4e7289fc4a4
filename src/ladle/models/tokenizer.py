"""Tokenizers: any one loaded as a fast one and saved without its repository's code, or a small one trained afresh.

Read, in this order: `tokenizer.json`; a `*.tiktoken` vocabulary of a known class; a sentencepiece `tokenizer.model`.
Saved as `tokenizer.json` and `tokenizer_config.json`, with the ids of the vocabulary that was read.

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
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode, import_protobuf

from ladle.artifacts.files import pretty_json
from ladle.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder, converting its vocabulary where there is no `tokenizer.json`.

    A tokenizer without a pad token pads with its eos token.

    Raises:
        UserError: the folder holds no vocabulary that Ladle can read.
    """
    vocabulary = _find_vocabulary(folder)
    if vocabulary.name == TOKENIZER_FILE:
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:
            if type(error) not in (Exception, KeyError, TypeError) and not isinstance(error, ValueError):
                raise  # tokenizers raises Exception itself
            problem = f"{vocabulary} is not a tokenizer ({type(error).__name__}: {error})"
            raise UserError(problem, "fetch the file again") from error
    else:
        tokenizer = _convert(folder, vocabulary)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _find_vocabulary(folder: Path) -> Path:
    names = [TOKENIZER_FILE, *sorted(path.name for path in folder.glob("*.tiktoken")), *SENTENCEPIECE_FILES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(path.name for path in folder.glob("*"))[:12]) or "nothing"
    fix = f"name a folder with {TOKENIZER_FILE}, a *.tiktoken file or a sentencepiece tokenizer.model"
    raise UserError(f"there is no tokenizer in {folder} (it holds {found})", fix)


def _convert(folder: Path, vocabulary: Path) -> PreTrainedTokenizerFast:
    config = read_json(folder / "tokenizer_config.json")
    known: dict[str, Any] = {}
    if vocabulary.suffix == ".tiktoken":
        name = config.get("tokenizer_class", "")
        if name not in FAMILIES:
            fix = f"Ladle knows {', '.join(FAMILIES)}; convert it with transformers and save {TOKENIZER_FILE} beside it"
            raise UserError(f"{vocabulary} belongs to tokenizer class {name!r}, whose pattern is in code only", fix)
        tokenizer = tokenizer_from_tiktoken(read_tiktoken(vocabulary), FAMILIES[name])
    else:
        tokenizer = tokenizer_from_sentencepiece(vocabulary)
        defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # sentencepiece's own names
        known = {name: token for name, token in defaults.items() if tokenizer.token_to_id(token) is not None}
    config = known | read_json(folder / "special_tokens_map.json") | config
    template = folder / "chat_template.jinja"
    named = {name: config[name] for name in NAMED_TOKENS if config.get(name)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **{name: token if isinstance(token, str) else token["content"] for name, token in named.items()},
        **{key: config[key] for key in ("model_max_length", "padding_side") if key in config},
    )


def convert_tokenizer(source: Path, out: Path) -> dict[str, Any]:
    """Write the tokenizer of `source` to `out` in its fast form and return a report of what was read and changed.

    transformers 5 writes a class name that earlier versions do not know, and how this one was loaded; neither is kept.
    """
    tokenizer = load_fast_tokenizer(source)
    tokenizer.save_pretrained(out, save_jinja_files=False)  # the chat template goes into tokenizer_config.json
    path = out / "tokenizer_config.json"
    config = {key: value for key, value in read_json(path).items() if key not in ("is_local", "local_files_only")}
    path.write_text(pretty_json(config | {"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
    vocabulary = _find_vocabulary(source).name
    return {
        "vocabulary": vocabulary,
        "tokens": len(tokenizer),
        "special_tokens": len(tokenizer.all_special_tokens),
        "added_tokens": len(tokenizer.get_added_vocab()),
        **{name: getattr(tokenizer, name) for name in NAMED_TOKENS},
        "chat_template": tokenizer.chat_template is not None,
        "converted": vocabulary != TOKENIZER_FILE,
        "remote_code_dropped": "auto_map" in read_json(source / "tokenizer_config.json"),
    }


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with single digits, trained on `texts`.

    Bytes make any text round-trip; single digits make numbers compositional (arXiv 2402.14903 compares tokenizations
    of numbers).

    Args:
        texts: to train on.
        vocab_size: the most tokens, the two special ones included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    end_of_text, padding = "<|endoftext|>", "<|pad|>"
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_text, padding],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end_of_text, pad_token=padding, clean_up_tokenization_spaces=False
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a model's folder holds, nothing if it is not there.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "fetch it again") from error


# Vocabularies of other libraries.


@dataclass(frozen=True)
class Family:
    """What a tokenizer class adds to its tiktoken file."""

    pattern: str
    """Regular expression of the pieces that BPE never merges across."""
    special_tokens: tuple[str, ...]
    """In id order, from the first id after the vocabulary."""


FAMILIES = {
    # tokenization_qwen.py of the Qwen and OpenSeek repositories
    "QWenTokenizer": Family(
        pattern=(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
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
            problem = f"{path}:{number} is not `<base64> <rank>`: {line[:60]!r}"
            raise UserError(problem, "fetch the vocabulary file again") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"the ranks in {path} are not 0 to {len(ranks) - 1}", "fetch the vocabulary file again")
    return ranks


def tokenizer_from_tiktoken(ranks: dict[bytes, int], family: Family) -> Tokenizer:
    """Return a tokenizer whose ids are tiktoken's for the same ranks, pattern and special tokens after
    Unicode's NFC."""
    characters = bytes_to_unicode()  # what byte-level BPE writes for each byte (GPT-2's table)

    def name(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    pairs = [_last_pair(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    merges = [(name(pair[0]), name(pair[1])) for pair in pairs if len(pair) == 2]
    vocabulary = {name(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()  # the known family's
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
        problem = f"{path} is a sentencepiece model of type {trainer.model_type}"
        raise UserError(problem, "only unigram (1) and BPE (2) are read")
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
