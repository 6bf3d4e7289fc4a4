"""A fast engine is used only where it agrees with the oracle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ladle.data import encoders
from ladle.data.encoders import (
    HARD_CASES,
    Disagreement,
    Encoded,
    Encoder,
    HfEncoder,
    PieceEncoder,
    require_agreement,
)

from .samples import make_config, read_tree

RunMix = Callable[..., Path]
HALVES = {"a": 0.5, "b": 0.5}


class WrongOn:
    """The oracle, but for texts that hold a given word."""

    def __init__(self, word: str, oracle: HfEncoder) -> None:
        self.word, self.oracle = word, oracle
        self.texts = 0

    def encode(self, texts: Sequence[str]) -> Encoded:
        self.texts += len(texts)
        ids, lengths = self.oracle.encode(texts)
        return Encoded(ids + 1 if any(self.word in text for text in texts) else ids, lengths)


@pytest.fixture(autouse=True)
def fresh_engines() -> Iterator[None]:
    encoders.load_encoder.cache_clear()
    yield
    encoders.load_encoder.cache_clear()


@pytest.fixture
def install(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], WrongOn]:
    """Put an engine in the place of fastokens that errs on texts with a word."""

    def install(word: str) -> WrongOn:
        engine = WrongOn(word, HfEncoder(tokenizer_folder / "tokenizer.json"))
        monkeypatch.setattr(encoders, "FastokensEncoder", lambda path: engine)
        return engine

    return install


@pytest.mark.parametrize("word", ["1.7 ", "e\u0301", "1.299 "], ids=["in the data", "in a hard case", "at the end"])
def test_a_disagreement_falls_back_aloud(
    run_mix: RunMix,
    two_sources: dict[str, list[Path]],
    install: Callable[[str], WrongOn],
    caplog: pytest.LogCaptureFixture,
    word: str,
):
    oracle = read_tree(run_mix(make_config(HALVES, engine="hf"), two_sources, "oracle"))
    install(word)
    with caplog.at_level(logging.WARNING):
        fast = read_tree(run_mix(make_config(HALVES), two_sources, "fast"))
    assert fast == oracle
    assert "fastokens is not used " in caplog.text
    assert "`tokenizers` is, which is slower" in caplog.text


def test_an_engine_that_agrees_is_used(
    run_mix: RunMix,
    two_sources: dict[str, list[Path]],
    install: Callable[[str], WrongOn],
    caplog: pytest.LogCaptureFixture,
):
    engine = install("no such word")
    run_mix(make_config(HALVES), two_sources)
    assert engine.texts > 500
    assert not caplog.records


def test_an_engine_that_cannot_read_the_tokenizer_falls_back(
    run_mix: RunMix,
    two_sources: dict[str, list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def refuse(path: Path) -> Encoder:
        raise ValueError("unknown model")

    monkeypatch.setattr(encoders, "FastokensEncoder", refuse)
    run_mix(make_config(HALVES), two_sources)
    assert caplog.text.count("fastokens is not used with") == 1
    assert "unknown model" in caplog.text


def test_the_text_that_differs_is_shown(tokenizer_folder: Path):
    oracle = HfEncoder(tokenizer_folder / "tokenizer.json")
    with pytest.raises(Disagreement, match="the ids of 'bad one' differ"):
        require_agreement(WrongOn("bad", oracle), oracle, ["good", "bad one", "good"])


def test_hard_cases_are_valid_text():
    assert all(case.encode("utf-8").decode("utf-8") == case for case in HARD_CASES)


def test_the_sample_starts_each_piece_and_stays_small(tokenizer_folder: Path):
    encoder = PieceEncoder("hf", tokenizer_folder)
    drawn = [text for _ in range(2000) for text in encoder.sample(["x" * 1000] * 100)]
    assert drawn[:3] == ["x" * 1000] * 3
    assert 0.0005 < len(drawn) / 200_000 < 0.001
