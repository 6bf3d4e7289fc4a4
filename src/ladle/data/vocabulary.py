"""What the data engine needs of a tokenizer: its file, the ids that end and pad documents, and how large an id may
be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.artifacts.files import canonical_json, hash_bytes, hash_file
from ladle.errors import UserError

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer by reference: small, picklable, loaded where it is used."""

    folder: Path
    digest: str
    """Hash of tokenizer.json."""
    chat_digest: str
    """Hash of what decides how messages are written out: the chat template and the named tokens it may use."""
    eos_id: int
    pad_id: int
    bos_id: int | None
    vocab_size: int
    """Ids run below this: the model's `vocab_size` where a config.json stands beside the tokenizer, else the
    tokenizer's."""

    @property
    def token_dtype(self) -> str:
        """Little-endian numpy dtype that holds every id."""
        return "<u2" if self.vocab_size <= 2**16 else "<u4"


def read_vocabulary(folder: Path, scratch: Path) -> Vocabulary:
    """Describe the tokenizer in a model or tokenizer folder.

    Args:
        folder: holds tokenizer.json, or a tiktoken or sentencepiece vocabulary, which is converted.
        scratch: where a converted tokenizer is put.

    Raises:
        UserError: no tokenizer there, one without an end-of-document token, or one with more tokens than the model.
    """
    model_config = _read_json(folder / "config.json")
    if (folder / "model" / "config.json").is_file():
        return read_vocabulary(folder / "model", scratch)
    if not (folder / TOKENIZER_FILE).is_file():
        folder = _convert(folder, scratch)
    ids = _token_ids(folder / TOKENIZER_FILE)
    named = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    eos_id, pad_id, bos_id = (_id_of(named.get(f"{name}_token"), ids) for name in ("eos", "pad", "bos"))
    if eos_id is None:
        raise UserError(f"the tokenizer in {folder} names no eos_token", "add `eos_token` to its tokenizer_config.json")
    return Vocabulary(
        folder=folder,
        digest=hash_file(folder / TOKENIZER_FILE),
        chat_digest=_hash_chat(folder, named),
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
        bos_id=bos_id,
        vocab_size=_model_vocab_size(model_config) or max(ids.values()) + 1,
    )


def _hash_chat(folder: Path, named: dict[str, Any]) -> str:
    used = {key: value for key, value in named.items() if key == "chat_template" or key.endswith("_token")}
    own_file = folder / "chat_template.jinja"
    template = own_file.read_text(encoding="utf-8") if own_file.is_file() else None
    return hash_bytes(canonical_json([used, template]).encode())


def _model_vocab_size(config: dict[str, Any]) -> int | None:
    return config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")


def _convert(folder: Path, scratch: Path) -> Path:
    from ladle.models.tokenizer import convert_tokenizer

    convert_tokenizer(folder, scratch)
    return scratch


def _token_ids(tokenizer_file: Path) -> dict[str, int]:
    tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram: [[token, score], …] in id order
        vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
    return vocabulary | {added["content"]: added["id"] for added in tokenizer["added_tokens"]}


def _id_of(token: str | dict[str, Any] | None, ids: dict[str, int]) -> int | None:
    if token is None:
        return None
    return ids.get(token if isinstance(token, str) else token["content"])


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
