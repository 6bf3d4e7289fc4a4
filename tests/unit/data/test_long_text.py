from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ladle.data import encoders
from ladle.data.encoders import Encoded, HfEncoder, encode_long, join_ids

from .samples import make_text


class Recorder:
    """Passes texts on and notes the longest."""

    def __init__(self, encoder: HfEncoder) -> None:
        self.encoder, self.longest = encoder, 0

    def encode(self, texts: Sequence[str]) -> Encoded:
        self.longest = max([self.longest, *map(len, texts)])
        return self.encoder.encode(texts)


@pytest.fixture
def recorder(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(encoders, "PART_CHARS", 2000)
    monkeypatch.setattr(encoders, "LOOKAHEAD_CHARS", 200)
    return Recorder(HfEncoder(tokenizer_folder / "tokenizer.json"))


@pytest.mark.parametrize(
    "text",
    [
        make_text(random.Random(0), 5000),
        "汉字测试，没有空格。" * 2000,
        "".join(chr(random.Random(1).choice([32, 10, 65, 0x301, 0x4E2D, 0x1F600])) for _ in range(20_000)),
        "\n" * 9000 + " " * 9000,
        "<eos>" * 3000,
        "short",
        "",
    ],
    ids=["words", "no spaces", "random", "white space", "special tokens", "short", "empty"],
)
def test_ids_are_those_of_the_whole_text(recorder: Recorder, text: str):
    expected = recorder.encoder.encode([text])[0]
    assert np.array_equal(np.concatenate([*encode_long(text, recorder)]), expected)


def test_long_text_is_encoded_in_parts(recorder: Recorder):
    assert len(list(encode_long(make_text(random.Random(0), 5000), recorder))) > 5
    assert recorder.longest <= 2200


def test_a_tokenizer_that_lets_nothing_be_cut_gets_the_whole_text(recorder: Recorder):
    class Prefixing:
        def encode(self, texts: Sequence[str]) -> Encoded:
            return join_ids([np.array([7, *map(ord, text)], np.uint32) for text in texts])

    text = make_text(random.Random(0), 2000)
    (ids,) = encode_long(text, Prefixing())
    assert np.array_equal(ids, Prefixing().encode([text])[0])
