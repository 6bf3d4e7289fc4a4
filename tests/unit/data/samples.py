"""Small sources, tokenizers and mixtures for the tests of the data engine."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ladle.data.config import MixConfig
from ladle.data.store import ROW, ROWS_FILE, SEGMENT, SEGMENTS_FILE, MixedDataset, open_shard

WORDS = [
    *("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "seven", "wizards", "prove"),
    *("a", "theorem", "about", "42", "prime", "numbers", "汉字", "测试"),
]
CHAT_TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"


def make_text(source: random.Random, words: int) -> str:
    return " ".join(source.choice(WORDS) for _ in range(words))


def make_texts(seed: int, count: int, longest: int = 120) -> list[str]:
    """Return texts of 1 to `longest` words, each unlike any other."""
    source = random.Random(seed)
    return [f"{seed}.{i} " + make_text(source, source.randint(1, longest)) for i in range(count)]


def save_tokenizer(folder: Path) -> Path:
    """Write a byte-level BPE of 400 tokens with a chat template; ids: <eos> 0, <pad> 1, <bos> 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>", "<pad>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((make_text(random.Random(i), 30) for i in range(50)), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", bos_token="<bos>", chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder, save_jinja_files=False)
    return folder


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    return write_jsonl(path, ({"text": text} for text in texts))


def make_config(ratios: dict[str, float], **changes: Any) -> MixConfig:
    settings: dict[str, Any] = {
        "sources": [{"name": name, "dataset": name, "ratio": ratio} for name, ratio in ratios.items()],
        "budget": {"tokens": 10_000},
        "sequence_length": 256,
        "shard_size_bytes": 8192,
        "workers": 1,
    }
    return MixConfig.model_validate(settings | changes)


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class DocumentPart(NamedTuple):
    """A stretch of a document in a row: the number of its row in the source's files, its first token there."""

    source: str
    document: int
    offset: int
    length: int


def documents_of_row(dataset: MixedDataset, index: int) -> list[DocumentPart]:
    """Name the documents in a row, from the index and the shards on disk."""
    folder, shards = dataset.path, dataset.mixture["shards"]
    first, count = np.fromfile(folder / dataset.split / ROWS_FILE, ROW)[index].tolist()
    parts = []
    for shard, length, offset in np.fromfile(folder / dataset.split / SEGMENTS_FILE, SEGMENT)[first : first + count]:
        ends = np.cumsum(open_shard(folder / shards[shard]["file"]).lengths(), dtype=np.int64)
        number = int(np.searchsorted(ends, offset, "right"))
        start = int(ends[number - 1]) if number else 0
        before = sum(other["rows"] for other in shards[:shard] if other["source"] == shards[shard]["source"])
        parts.append(DocumentPart(shards[shard]["source"], before + number, int(offset) - start, int(length)))
    return parts
