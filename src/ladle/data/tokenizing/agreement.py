"""Holds a fast tokenizer engine against the oracle: on fixed hard cases once a process, and on a sample of every
piece."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ladle.data.tokenizing.encoders import Encoder, Engine, load_encoder
from ladle.errors import LadleError, UserError

FIRST_CHARS = 16_000
"""Characters at the start of each piece that both engines encode."""
SAMPLED_SHARE = 1 / 2_000
"""Share of the later characters that both engines encode: at a thirtieth of the speed, 1.5 % of the time."""
LONGEST_SAMPLED_CHARS = 20_000

HARD_CASES = (
    "",
    " ",
    "  \t \n\n  x",
    "a\r\nb\r\n\r\n  c",
    "I'm you're WE'LL it'S ’s",
    "12345 1,234.56 ３４５ ١٢٣ ½ ²",
    "e\u0301 \u1100\u1161\u11a8 \u212b \ufb01 \u0344 q\u0323\u0307 q\u0307\u0323",
    "汉字，标点。“引号”……——　全角空格",
    "日本語カタカナ ｶﾀｶﾅ がぎ 한국어",
    "العربية עברית ไทย हिन्दी ភាសាខ្មែរ",
    "👩‍👩‍👧‍👦 🇨🇳 ☝🏽 ️⃣ \U000e0067",
    "\u200b\u200d\ufeff\u00a0\u2028\u2029\u0085\x00\x1f\x7f",
    "<|endoftext|><|im_start|>user\nhi<|im_end|> <|extra_203|> <s></s> <|endoftext |>",
    "def f(x):\n\treturn x**2  # √x ≠ -x\n\n\n",
    "$\\frac{1}{2}\\mathbb{R}^{n}$ \\begin{align*}",
    "a" * 300 + "!" * 300 + " " * 300 + "\n" * 300,
    "\ufffd\ud7ff\ue000\uffff\U0010ffff",
)
FUZZ_TEXTS = 300


class Disagreement(LadleError):
    """The engines gave different ids for a text."""


@functools.cache
def load_checked_encoder(engine: Engine, folder: Path) -> Encoder:
    """Load an engine and, unless it is the oracle, hold it against the oracle on the hard cases.

    Raises:
        Disagreement: it cannot read the tokenizer, or gives other ids.
    """
    oracle = load_encoder("oracle", folder)
    try:
        encoder = load_encoder(engine, folder)
    except UserError:
        raise
    except ValueError as error:
        raise Disagreement(f"{engine} cannot read this tokenizer: {str(error).splitlines()[0]}") from error
    if encoder is not oracle:
        require_agreement(encoder, oracle, [*HARD_CASES, *_fuzz()])
    return encoder


def require_agreement(encoder: Encoder, oracle: Encoder, texts: Sequence[str]) -> None:
    """Raise Disagreement unless both encoders give the same ids for each text."""
    ids, lengths = encoder.encode(texts)
    expected_ids, expected_lengths = oracle.encode(texts)
    if np.array_equal(lengths, expected_lengths) and np.array_equal(ids, expected_ids):
        return
    for text in texts:
        if not np.array_equal(encoder.encode([text])[0], oracle.encode([text])[0]):
            raise Disagreement(f"the ids of {text[:80]!r} differ")
    raise Disagreement("the ids of a batch differ, and of none of its texts alone")


class PieceSample:
    """Draws from the batches of a piece the texts that both engines encode."""

    def __init__(self) -> None:
        self.seen_chars = self.sampled_chars = 0

    def draw(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of this batch to compare."""
        chosen = []
        for text in texts:
            self.seen_chars += len(text)
            if (
                len(text) <= LONGEST_SAMPLED_CHARS
                and self.sampled_chars <= FIRST_CHARS + self.seen_chars * SAMPLED_SHARE
            ):
                self.sampled_chars += len(text)
                chosen.append(text)
        return chosen


def _fuzz() -> list[str]:
    """Return fixed random strings over the blocks of Unicode where tokenizers' tables differ."""
    source = random.Random(233)
    blocks = (
        (32, 126),
        (0xA0, 0x17F),
        (0x300, 0x36F),
        (0x600, 0x6FF),
        (0x1100, 0x11FF),
        (0x2000, 0x206F),
        (0x4E00, 0x4FFF),
        (0x1F300, 0x1F6FF),
    )
    return [
        "".join(chr(source.randint(*source.choice(blocks))) for _ in range(source.randint(1, 40)))
        for _ in range(FUZZ_TEXTS)
    ]
