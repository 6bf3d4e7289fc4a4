"""Recipe sections for getting a model (`base:`), and facts about model folders that need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ladle.config import Config, location
from ladle.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16"]
TOKENIZER_PATTERNS = (
    "*token*.json", "*.tiktoken", "*.model", "*.jinja", "config.json", "vocab.json", "merges.txt",
)  # fmt: skip
"""The files of a model's repository that make up its tokenizer, of any kind."""
DEEPSEEK_V3_ROUTING = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
"""Keys of DeepSeek-V3's config.json that transformers neither reads nor saves, and vLLM cannot load it without."""


class FetchModelConfig(Config):
    """Import a model from the Hub or a local folder into a clean local one."""

    kind: Literal["model"] = "model"
    dtype: Dtype | None = None
    """Dtype to save the weights in; unset keeps the source's."""


class TokenizerSource(Config):
    """What to train a fresh model's tokenizer on: a byte-level BPE whose digits are single tokens."""

    dataset: str = location()
    """A name of the recipe's `datasets:`, a Hub id, a folder, or a file."""
    split: str = "train"
    """Split to read."""
    text: str = "text"
    """Column to train on."""
    vocab_size: int = Field(default=512, ge=260)
    """Tokens of the vocabulary: 256 bytes, special tokens and merges."""


class FreshModelConfig(Config):
    """The shape of a model with random weights."""

    seed: int = 233
    """Decides the weights."""
    architecture: dict[str, Any]
    """Fields of the transformers config, `model_type` too; `vocab_size` and special ids come from the tokenizer."""
    dtype: Dtype = "float32"
    """Dtype to save the weights in."""


class InitModelConfig(FreshModelConfig):
    """A fresh model with random weights."""

    kind: Literal["init"] = "init"
    train_tokenizer: TokenizerSource | None = None
    """Train a tokenizer on the input instead of importing one."""


class InitConfig(FreshModelConfig):
    """The `base.init` section: shape and tokenizer of a fresh model."""

    tokenizer: str | TokenizerSource = location()
    """A folder with a tokenizer (tokenizer.json, `*.tiktoken`, sentencepiece), or what to train one on."""


def model_dir(path: Path) -> Path:
    """Return the model folder of an artifact: `path/model`, or `path` itself.

    Raises:
        UserError: neither holds a config.json.
    """
    for candidate in (path / "model", path):
        if (candidate / "config.json").is_file():
            return candidate
    fix = "name a folder saved by save_pretrained, or a step: RECIPE:STEP"
    if path.suffix == ".gguf" and path.is_file():
        raise UserError(f"{path} is a GGUF file, not a folder", f"import it first: ladle fetch {path} --out my-model")
    if not path.exists():
        raise UserError(f"there is no model at {path}", fix)
    inside = sorted([*path.glob("*/config.json"), *path.glob("*/model/config.json")])
    raise UserError(f"{path} holds no model (no config.json)", f"did you mean {inside[0].parent}?" if inside else fix)


def choose_dtype(dtype: str | None) -> str:
    """Return the type to run weights in: the one that is named, else bfloat16 on GPUs that have it, float32 on CPUs."""
    import torch

    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return dtype or ("bfloat16" if has_bfloat16 else "float32")
