"""Tokenizers: any one loaded as a fast one and saved without its repository's code, or a small one trained afresh.

Read, in this order: `tokenizer.json`; a `*.tiktoken` vocabulary of a known class; a sentencepiece `tokenizer.model`.
Saved as `tokenizer.json` and `tokenizer_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ladle.artifacts.files import pretty_json
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.vocabularies import FAMILIES, read_tiktoken, tokenizer_from_sentencepiece, tokenizer_from_tiktoken

logger = get_logger(__name__)

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
END_OF_TURN = "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As TRL's `setup_chat_format` writes it."""


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
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{vocabulary} is not a tokenizer ({type(error).__name__}: {error})", "fetch the file again"
            ) from error
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
    raise UserError(
        f"there is no tokenizer in {folder} (it holds {found})",
        f"name a folder with {TOKENIZER_FILE}, a *.tiktoken file or a sentencepiece tokenizer.model",
    )


def _convert(folder: Path, vocabulary: Path) -> PreTrainedTokenizerFast:
    config = _read_json(folder / "tokenizer_config.json")
    known: dict[str, Any] = {}
    if vocabulary.suffix == ".tiktoken":
        family = FAMILIES.get(config.get("tokenizer_class", ""))
        if family is None:
            raise UserError(
                f"{vocabulary} belongs to tokenizer class {config.get('tokenizer_class')!r}, whose pattern is in code "
                "only",
                f"Ladle knows {', '.join(FAMILIES)}; convert it with transformers and save {TOKENIZER_FILE} beside it",
            )
        tokenizer = tokenizer_from_tiktoken(read_tiktoken(vocabulary), family)
    else:
        tokenizer = tokenizer_from_sentencepiece(vocabulary)
        defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # sentencepiece's own names
        known = {name: token for name, token in defaults.items() if tokenizer.token_to_id(token) is not None}
    config = known | _read_json(folder / "special_tokens_map.json") | config
    template = folder / "chat_template.jinja"
    named = {name: config[name] for name in NAMED_TOKENS if config.get(name)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **{name: token if isinstance(token, str) else token["content"] for name, token in named.items()},
        **{key: config[key] for key in ("model_max_length", "padding_side") if key in config},
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
    vocabulary = _find_vocabulary(source).name
    return {
        "vocabulary": vocabulary,
        "tokens": len(tokenizer),
        "special_tokens": len(tokenizer.all_special_tokens),
        "added_tokens": len(tokenizer.get_added_vocab()),
        **{name: getattr(tokenizer, name) for name in NAMED_TOKENS},
        "chat_template": tokenizer.chat_template is not None,
        "converted": vocabulary != TOKENIZER_FILE,
        "remote_code_dropped": "auto_map" in _read_json(source / "tokenizer_config.json"),
    }


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a chat template ChatML's, with a warning.

    The vocabulary stays as it is: where it lacks ChatML's markers they are ordinary text, several tokens each.
    """
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
        is_known = tokenizer.convert_tokens_to_ids(END_OF_TURN) not in (None, tokenizer.unk_token_id)
        logger.warning(
            "the tokenizer has no chat template: using ChatML%s",
            "" if is_known else f", whose markers ({END_OF_TURN}) are ordinary text in this vocabulary",
        )


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


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
