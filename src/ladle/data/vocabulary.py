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
    """Ids run below this: the model's `vocab_size` where a config.json is beside the tokenizer, else the
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
    if (folder / "model" / "config.json").is_file():
        folder /= "model"
    model = _read_json(folder / "config.json")
    if not (folder / TOKENIZER_FILE).is_file():
        from ladle.models.tokenizer import convert_tokenizer

        convert_tokenizer(folder, scratch)
        folder = scratch
    ids = _token_ids(folder / TOKENIZER_FILE)
    named = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    special = {key: _content(value) for key, value in named.items() if key.endswith("_token")}
    eos_id, pad_id, bos_id = (ids.get(special.get(f"{name}_token", "")) for name in ("eos", "pad", "bos"))
    if eos_id is None:
        raise UserError(f"the tokenizer in {folder} names no eos_token", "add `eos_token` to its tokenizer_config.json")
    chat = {key: value for key, value in named.items() if key == "chat_template" or key.endswith("_token")}
    own_file = folder / "chat_template.jinja"
    template = own_file.read_text(encoding="utf-8") if own_file.is_file() else None
    return Vocabulary(
        folder=folder,
        digest=hash_file(folder / TOKENIZER_FILE),
        chat_digest=hash_bytes(canonical_json([chat, template]).encode()),
        eos_id=eos_id,
        pad_id=eos_id if pad_id is None else pad_id,
        bos_id=bos_id,
        vocab_size=model.get("vocab_size") or model.get("text_config", {}).get("vocab_size") or max(ids.values()) + 1,
    )


def _token_ids(tokenizer_file: Path) -> dict[str, int]:
    tokenizer = _read_json(tokenizer_file)
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram: [[token, score], …] in id order
        vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
    return vocabulary | {added["content"]: added["id"] for added in tokenizer["added_tokens"]}


def _content(token: str | dict[str, Any] | None) -> str:
    return token["content"] if isinstance(token, dict) else token or ""


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
