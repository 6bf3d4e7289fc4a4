"""Loads any tokenizer as a fast one, and saves it as `tokenizer.json` + `tokenizer_config.json`, without running a
repository's code.

Read, in this order: `tokenizer.json`; a `*.tiktoken` vocabulary of a known class; a sentencepiece `tokenizer.model`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ladle.artifacts.files import pretty_json
from ladle.errors import UserError
from ladle.models.sentencepiece_vocabulary import tokenizer_from_sentencepiece
from ladle.models.tiktoken_vocabulary import FAMILIES, read_tiktoken, tokenizer_from_tiktoken

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder, converting its vocabulary where there is no `tokenizer.json`.

    A tokenizer without a pad token pads with its eos token.

    Raises:
        UserError: the folder holds no vocabulary that Ladle can read.
    """
    tokenizer = _load(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(folder: Path) -> PreTrainedTokenizerFast:
    if (folder / TOKENIZER_FILE).is_file():
        try:
            return PreTrainedTokenizerFast.from_pretrained(folder)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{folder / TOKENIZER_FILE} is no tokenizer ({type(error).__name__}: {error})", "fetch the file again"
            ) from error
    tiktoken_files = sorted(folder.glob("*.tiktoken"))
    if tiktoken_files:
        return _load_tiktoken(folder, tiktoken_files[0])
    for name in SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            return _load_sentencepiece(folder, folder / name)
    found = ", ".join(sorted(path.name for path in folder.glob("*"))[:12]) or "nothing"
    raise UserError(
        f"there is no tokenizer in {folder} (it holds {found})",
        f"name a folder with {TOKENIZER_FILE}, a *.tiktoken file or a sentencepiece tokenizer.model",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the chat template inside the latter.

    transformers 5 writes a class name that earlier versions do not know, and how this one was loaded; neither is kept.
    """
    tokenizer.save_pretrained(out, save_jinja_files=False)
    path = out / "tokenizer_config.json"
    config = {key: value for key, value in _read_json(path).items() if key not in ("is_local", "local_files_only")}
    path.write_text(pretty_json(config | {"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")


def convert_tokenizer(source: Path, out: Path) -> dict[str, Any]:
    """Write the tokenizer of `source` to `out` in its fast form and return a report of what was read and changed."""
    tokenizer = load_fast_tokenizer(source)
    save_tokenizer(tokenizer, out)
    config = _read_json(source / "tokenizer_config.json")
    return {
        "vocabulary": _vocabulary_file(source),
        "tokens": len(tokenizer),
        "special_tokens": len(tokenizer.all_special_tokens),
        "added_tokens": len(tokenizer.get_added_vocab()),
        **{name: getattr(tokenizer, name) for name in NAMED_TOKENS},
        "chat_template": tokenizer.chat_template is not None,
        "converted": not (source / TOKENIZER_FILE).is_file(),
        "remote_code_dropped": "auto_map" in config,
    }


def _load_tiktoken(folder: Path, vocabulary: Path) -> PreTrainedTokenizerFast:
    config = _read_json(folder / "tokenizer_config.json")
    family = FAMILIES.get(config.get("tokenizer_class", ""))
    if family is None:
        raise UserError(
            f"{vocabulary} belongs to tokenizer class {config.get('tokenizer_class')!r}, whose pattern is in code only",
            f"Ladle knows {', '.join(FAMILIES)}; convert it with transformers and save {TOKENIZER_FILE} beside it",
        )
    tokenizer = tokenizer_from_tiktoken(read_tiktoken(vocabulary), family)
    return _wrap(tokenizer, folder, _read_json(folder / "special_tokens_map.json") | config)


def _load_sentencepiece(folder: Path, vocabulary: Path) -> PreTrainedTokenizerFast:
    config = _read_json(folder / "tokenizer_config.json")
    tokenizer = tokenizer_from_sentencepiece(vocabulary)
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # sentencepiece's own names
    known = {name: token for name, token in defaults.items() if tokenizer.token_to_id(token) is not None}
    return _wrap(tokenizer, folder, known | _read_json(folder / "special_tokens_map.json") | config)


def _wrap(tokenizer: Tokenizer, folder: Path, config: dict[str, Any]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_chat_template(folder, config),
        clean_up_tokenization_spaces=False,
        **{name: _content(config[name]) for name in NAMED_TOKENS if config.get(name)},
        **{key: config[key] for key in ("model_max_length", "padding_side") if key in config},
    )


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    return beside.read_text(encoding="utf-8") if beside.is_file() else config.get("chat_template")


def _vocabulary_file(folder: Path) -> str:
    candidates = [
        folder / TOKENIZER_FILE,
        *sorted(folder.glob("*.tiktoken")),
        *(folder / name for name in SENTENCEPIECE_FILES),
    ]
    return next(path.name for path in candidates if path.is_file())


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
