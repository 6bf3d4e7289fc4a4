"""One document of 200 MB: encoded in parts, with the ids of the whole, in bounded memory."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from ladle.data.store import open_shard
from ladle.models.tokenizer import FAMILIES

pytestmark = pytest.mark.slow

NUM_BYTES = 200_000_000

PROGRAM = r"""
import re, sys
from pathlib import Path
from ladle.data.config import MixConfig
from ladle.stages import mix

source = {"name": "long", "dataset": "none", "ratio": 1.0}
config = MixConfig(sources=[source], budget={"tokens": 1_000_000}, engine="fastokens", workers=1)
mix.run(config, {"tokenizer": [Path(sys.argv[1])], "source:long": [Path(sys.argv[2])]}, Path(sys.argv[3]))
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # getrusage counts the parent in
"""


def test_it_has_the_oracles_ids(
    shared_data: Path, openseek_tokenizer: Path, corpus: dict[str, list[str]], tmp_path: Path
):
    pytest.importorskip("fastokens")
    text = make_long(corpus)
    (tmp_path / "out").mkdir()
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + '\n{"text": "short"}\n')
    arguments = [openseek_tokenizer, tmp_path / "long.jsonl", tmp_path / "out"]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    peak_kib = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    shard = open_shard(max((tmp_path / "out" / "tokens").iterdir(), key=lambda path: path.stat().st_size))
    expected = encode_whole(shared_data, unicodedata.normalize("NFC", text))
    assert shard.lengths().tolist() == [len(expected) + 1]
    assert np.array_equal(shard.tokens()[: len(expected)], expected)
    assert peak_kib * 1024 <= 2 * 10**9


def make_long(corpus: dict[str, list[str]]) -> str:
    """Return the corpora's documents in random orders, again and again, as one text."""
    texts = [text for of_source in corpus.values() for text in of_source]
    source, parts, held = random.Random(233), [], 0
    while held < NUM_BYTES:
        text = source.choice(texts)
        parts.append(text)
        held += len(text.encode())
    return "".join(parts)


def encode_whole(shared_data: Path, text: str) -> np.ndarray:
    lines = (shared_data / "openseek-tokenizer" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    family = FAMILIES["QWenTokenizer"]
    special = {token: len(ranks) + index for index, token in enumerate(family.special_tokens)}
    oracle = tiktoken.Encoding("openseek", pat_str=family.pattern, mergeable_ranks=ranks, special_tokens=special)
    return oracle.encode_to_numpy(text, allowed_special="all")
