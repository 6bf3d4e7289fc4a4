"""The memory for words changes no id: whatever text, it gives what the tokenizer gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ladle.data.tokenizing import memo
from ladle.data.tokenizing.agreement import HARD_CASES
from ladle.data.tokenizing.encoders import HfEncoder, load_encoder
from ladle.data.tokenizing.memo import MemoEncoder, digits_of_a_word
from ladle.data.tokenizing.words import PATTERNS, UNSURE, character_classes

from .samples import make_texts


def make_tokenizer(pattern: str, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        [*make_texts(1, 100), *HARD_CASES, "don't we'll 1234 \n\n  x = [1];\r\n"] * 2, trainer
    )
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>"), AddedToken("<|im_end|>", lstrip=True, rstrip=True)])
    return tokenizer


@pytest.fixture(scope="module", params=PATTERNS, ids=["one digit", "three digits"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make_tokenizer(request.param, normalizers.NFC())


def encoders_of(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoEncoder, HfEncoder]:
    folder = tmp_path_factory.mktemp("memo")
    tokenizer.save(str(folder / "tokenizer.json"))
    fast, oracle = load_encoder("hf", folder), load_encoder("oracle", folder)
    assert isinstance(fast, MemoEncoder)
    assert isinstance(oracle, HfEncoder)
    return fast, oracle


@pytest.fixture(scope="module")
def both(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoEncoder, HfEncoder]:
    return encoders_of(tokenizer, tmp_path_factory)


def require_equal(both: tuple[MemoEncoder, HfEncoder], texts: Sequence[str]) -> None:
    (ids, lengths), (expected_ids, expected_lengths) = (encoder.encode(texts) for encoder in both)
    if not np.array_equal(lengths, expected_lengths) or not np.array_equal(ids, expected_ids):
        for text in texts:
            assert both[0].encode([text])[0].tolist() == both[1].encode([text])[0].tolist(), repr(text)
        pytest.fail("the texts differ together, and none alone")


PARTS = st.sampled_from(
    [
        "'s",
        "'LL",
        "'re",
        "don't",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\x0b",
        "\u3000",
        "\x85",
        "a",
        "Zebra",
        "é",
        "中文",
        "1",
    ]
    + ["12345", "½", "!", "?!", "...", "_", "e\u0301", "\u1100\u1161", "\u017f", "'\u017f", "👩‍👩‍👧", "\U0010ffff"]
    + ["<|endoftext|>", " <|im_end|> ", "<|", "\u200b", "\ufeff", "\x00", "٣", "ก", "각"]
)


@given(texts=st.lists(st.lists(PARTS | st.text(max_size=3), max_size=12).map("".join), max_size=5))
def test_ids_are_the_tokenizers(both: tuple[MemoEncoder, HfEncoder], texts: list[str]):
    require_equal(both, texts)


def test_ids_of_hard_cases_and_of_real_text(both: tuple[MemoEncoder, HfEncoder], repository: Path):
    files = [*repository.glob("src/ladle/data/*.py"), *repository.glob("docs/*.md")]
    require_equal(both, [*HARD_CASES, *(file.read_text(encoding="utf-8") for file in files)])


def test_every_character_is_of_the_tokenizers_class(both: tuple[MemoEncoder, HfEncoder]):
    """Letters, numbers and spaces join their neighbours in different ways."""
    classes = character_classes()
    characters = [chr(point) for point in range(len(classes)) if classes[point] != UNSURE]
    assert len(characters) > 90_000
    for start in range(0, len(characters), 4000):
        require_equal(both, [f"a{c}b 1{c}2 {c} '{c}  {c}\n{c};" for c in characters[start : start + 4000]])


def test_it_forgets_and_learns_again(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memo, "MOST_WORDS", 50)
    digits = digits_of_a_word(tokenizer)
    assert digits is not None
    encoder = MemoEncoder(tokenizer, digits)
    for seed in range(5):
        texts = make_texts(seed, 40)
        expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        ids, lengths = encoder.encode(texts)
        assert [piece.tolist() for piece in np.split(ids, np.cumsum(lengths)[:-1])] == expected
        assert encoder.num_words < 3000


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": normalizers.NFKC()},
        {"normalizer": normalizers.Lowercase()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"model": models.BPE(dropout=0.1)},
        {"model": models.WordLevel({"a": 0}, unk_token="a")},
    ],
    ids=str,
)
def test_other_kinds_of_tokenizers_are_left_alone(change: dict[str, Any]):
    tokenizer = make_tokenizer(next(iter(PATTERNS)))
    assert digits_of_a_word(tokenizer) == 1
    for name, value in change.items():
        setattr(tokenizer, name, value)
    assert digits_of_a_word(tokenizer) is None
