"""The converted OpenSeek tokenizer and the fast engine against tiktoken, on real text and on random Unicode.

tiktoken knows neither NFC nor, by itself, where special tokens stand; both are given to it as the original class
gives them.
"""

from __future__ import annotations

import base64
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from tokenizers import normalizers

from ladle.data.encoders import HARD_CASES, Encoder, Engine, FastokensEncoder, load_encoder
from ladle.models.tokenizer import FAMILIES, load_fast_tokenizer

pytestmark = pytest.mark.slow

NUM_RANDOM = 30_000
NFC = normalizers.NFC()  # one table of Unicode on both sides: Python's is of another version


@pytest.fixture(scope="module")
def oracle(shared_data: Path) -> tiktoken.Encoding:
    lines = (shared_data / "openseek-tokenizer" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    family = FAMILIES["QWenTokenizer"]
    special = {token: len(ranks) + index for index, token in enumerate(family.special_tokens)}
    return tiktoken.Encoding("openseek", pat_str=family.pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="module", params=["hf", "fastokens"])
def encoder(request: pytest.FixtureRequest, openseek_tokenizer: Path) -> Encoder:
    engine: Engine = request.param
    encoder = load_encoder(engine, openseek_tokenizer)
    assert isinstance(encoder, FastokensEncoder) == (engine == "fastokens"), "the engine was replaced by the oracle"
    return encoder


def random_texts() -> Iterator[str]:
    """Yield strings of code points from all of Unicode, from its crowded blocks, and from ASCII, mixed."""
    source = random.Random(233)
    blocks = [
        (0x20, 0x7E),
        (0x00, 0xFF),
        (0x100, 0x24F),
        (0x300, 0x36F),
        (0x370, 0x52F),
        (0x590, 0x6FF),
        (0x900, 0xDFF),
    ]
    blocks += [
        (0x1100, 0x11FF),
        (0x2000, 0x2BFF),
        (0x3000, 0x30FF),
        (0x4E00, 0x9FFF),
        (0xAC00, 0xD7AF),
        (0xF900, 0xFFFF),
    ]
    blocks += [(0x10000, 0x1FFFF), (0x20000, 0x323AF), (0xE0000, 0xE01EF), (0x20, 0x10FFFF)]
    for _ in range(NUM_RANDOM):
        chosen = source.sample(blocks, source.randint(1, 3))
        points = (source.randint(*source.choice(chosen)) for _ in range(source.randint(1, 40)))
        yield "".join(chr(point) for point in points if not 0xD800 <= point <= 0xDFFF)


def differing(encoder: Encoder, oracle: tiktoken.Encoding, texts: list[str]) -> list[str]:
    ids, lengths = encoder.encode(texts)
    stops = np.cumsum(lengths)
    found = (ids[stop - length : stop].tolist() for stop, length in zip(stops, lengths, strict=True))
    expected = (oracle.encode(NFC.normalize_str(text), allowed_special="all") for text in texts)
    return [text for text, one, other in zip(texts, found, expected, strict=True) if one != other]


def test_ids_equal_tiktokens_on_every_document(
    encoder: Encoder, oracle: tiktoken.Encoding, corpus: dict[str, list[str]]
):
    texts = [text for of_source in corpus.values() for text in of_source]
    assert len(texts) == 9025
    assert differing(encoder, oracle, texts) == []


def test_ids_equal_tiktokens_on_random_unicode(encoder: Encoder, oracle: tiktoken.Encoding):
    assert differing(encoder, oracle, list(random_texts())) == []


def test_ids_equal_tiktokens_on_hard_cases(encoder: Encoder, oracle: tiktoken.Encoding):
    special = [
        "".join(FAMILIES["QWenTokenizer"].special_tokens),
        *(f"a{t} b" for t in FAMILIES["QWenTokenizer"].special_tokens),
    ]
    assert differing(encoder, oracle, [*HARD_CASES, *special]) == []


def test_text_round_trips(openseek_tokenizer: Path, corpus: dict[str, list[str]]):
    tokenizer = load_fast_tokenizer(openseek_tokenizer)
    for texts in corpus.values():
        for text in texts[::20]:
            assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_special_ids_are_openseeks(openseek_tokenizer: Path):
    """Source: its generation_config.json (bos 151849, eos 151850) and the Qwen tokenizer (im_end 151645)."""
    tokenizer = load_fast_tokenizer(openseek_tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (151849, 151850, 151643)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [151644, 151645]
    assert len(tokenizer) == 151_851
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1?"}], tokenize=False, add_generation_prompt=True
    )
    system = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
    assert chat == system + "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
