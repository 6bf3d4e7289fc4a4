"""The tokenizer of a mixture: what is known of it, and text to token ids.

`tokenizers` (engine `hf`) is the oracle; fastokens is several times faster, and is used only where it gives the same
ids: on fixed hard cases, checked once a process, and on a sample of every piece of the data.

No special tokens are added, and none are guarded against: a special token written out in a text becomes its id.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from fastokens import Tokenizer as FastTokenizer
from tokenizers import Tokenizer

from ladle.artifacts.files import canonical_json, hash_bytes, hash_file
from ladle.errors import LadleError, UserError
from ladle.log import get_logger

logger = get_logger(__name__)

TOKENIZER_FILE = "tokenizer.json"
Engine = Literal["hf", "fastokens"]

# Characters at the start of each piece that both engines encode.
FIRST_CHARS = 16_000
# Share of the later characters that both engines encode: at a thirtieth of the speed, 1.5 % of the time.
SAMPLED_SHARE = 1 / 2_000
LONGEST_SAMPLED_CHARS = 20_000
# Longer texts are encoded in parts of this size.
PART_CHARS = 2**18
LOOKAHEAD_CHARS = 2**12
CUTS_TRIED = 8

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
_FUZZ_TEXTS = 300
# Blocks of Unicode where the tables of tokenizers differ.
_FUZZ_BLOCKS = (
    *((0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x600, 0x6FF)),
    *((0x1100, 0x11FF), (0x2000, 0x206F), (0x4E00, 0x4FFF), (0x1F300, 0x1F6FF)),
)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer by reference: small, picklable, loaded where it is used.

    Attributes:
        folder: holds tokenizer.json.
        digest: hash of tokenizer.json.
        chat_digest: hash of what decides how messages are written out: the chat template and the named tokens it may
            use.
        eos_id: ends a document.
        eos_text: what becomes eos where it is written in a text; empty if nothing does.
        pad_id: fills rows; eos where the tokenizer names none.
        bos_id: begins a document, where that is wanted.
        vocab_size: ids run below this: the model's `vocab_size` where a config.json is beside the tokenizer, else the
            tokenizer's.
    """

    folder: Path
    digest: str
    chat_digest: str
    eos_id: int
    eos_text: str
    pad_id: int
    bos_id: int | None
    vocab_size: int

    @property
    def token_dtype(self) -> str:
        """Little-endian numpy dtype that holds every id."""
        return "<u2" if self.vocab_size <= 2**16 else "<u4"


def read_vocabulary(folder: Path, scratch: Path) -> Vocabulary:
    """Describe the tokenizer in a model or tokenizer folder.

    Args:
        folder: holds tokenizer.json, or a tiktoken or sentencepiece vocabulary, which is converted.
        scratch: where a converted tokenizer is put.

    Raises:
        UserError: no tokenizer there, one without an end-of-document token, or one with more tokens than the model.
    """
    if (folder / "model" / "config.json").is_file():
        folder /= "model"
    model = _read_json(folder / "config.json")
    if not (folder / TOKENIZER_FILE).is_file():
        from ladle.models.tokenizer import convert_tokenizer

        convert_tokenizer(folder, scratch)
        folder = scratch
    ids, added = _token_ids(folder / TOKENIZER_FILE)
    named = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    special = [named.get(key) or "" for key in ("eos_token", "pad_token", "bos_token")]
    special = [one["content"] if isinstance(one, dict) else one for one in special]
    eos_id, pad_id, bos_id = map(ids.get, special)
    if eos_id is None:
        problem = f"names {special[0]!r} as its eos_token and has no such token" if special[0] else "names no eos_token"
        raise UserError(f"the tokenizer in {folder} {problem}", "set `eos_token` in its tokenizer_config.json")
    chat = {key: value for key, value in named.items() if key == "chat_template" or key.endswith("_token")}
    own_file = folder / "chat_template.jinja"
    template = own_file.read_text(encoding="utf-8") if own_file.is_file() else None
    digests = hash_file(folder / TOKENIZER_FILE), hash_bytes(canonical_json([chat, template]).encode())
    eos_text = special[0] if special[0] in added else ""
    vocab_size = model.get("vocab_size") or model.get("text_config", {}).get("vocab_size") or max(ids.values()) + 1
    return Vocabulary(folder, *digests, eos_id, eos_text, eos_id if pad_id is None else pad_id, bos_id, vocab_size)


def _token_ids(tokenizer_file: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return the id of each token, and those of the added ones alone, which text is searched for."""
    tokenizer = _read_json(tokenizer_file)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram: [[token, score], …] in id order
            vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{tokenizer_file} is not a tokenizer ({error!r})", "fetch the file again") from error
    return vocabulary | added, added


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "fetch it again") from error


class Encoded(NamedTuple):
    """The ids of some texts.

    Attributes:
        ids: (sum of lengths,) u4 ids of all texts, end to end.
        lengths: (texts,) i8 number of ids of each text.
    """

    ids: np.ndarray
    lengths: np.ndarray


class Encoder(Protocol):
    """Encodes texts by one tokenizer."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of texts."""
        ...


class HfEncoder:
    """Hugging Face `tokenizers`."""

    library: Any = Tokenizer

    def __init__(self, tokenizer_file: Path) -> None:
        self.tokenizer = self.library.from_file(str(tokenizer_file))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of texts."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return join_ids([np.array(encoding.ids, np.uint32) for encoding in encodings])


class FastokensEncoder(HfEncoder):
    """fastokens; its flat buffers become arrays without a Python object a token."""

    library = FastTokenizer

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of texts."""
        ids, offsets = self.tokenizer.encode_batch_flat(list(texts))
        return Encoded(np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64)))


class Disagreement(LadleError):
    """The engines gave different ids for a text."""


def join_ids(of_texts: Sequence[np.ndarray]) -> Encoded:
    """Put the ids of single texts end to end."""
    lengths = np.array([len(ids) for ids in of_texts], np.int64)
    return Encoded(np.concatenate([np.empty(0, np.uint32), *of_texts]), lengths)


@functools.cache
def load_oracle(folder: Path) -> HfEncoder:
    """Load `tokenizers` once a process."""
    return HfEncoder(folder / TOKENIZER_FILE)


@functools.cache
def load_encoder(engine: Engine, folder: Path) -> Encoder:
    """Load an engine once a process; one that cannot read the tokenizer, or gives other ids for the hard cases, is
    replaced by the oracle, and a warning says so."""
    oracle = load_oracle(folder)
    if engine == "hf":
        return oracle
    try:
        encoder = FastokensEncoder(folder / TOKENIZER_FILE)
        require_agreement(encoder, oracle, [*HARD_CASES, *_fuzz()])
    except (ValueError, Disagreement) as problem:
        reason = str(problem).splitlines()[0]
        logger.warning("%s is not used with %s: %s. `tokenizers` is, which is slower", engine, folder, reason)
        return oracle
    return encoder


def _fuzz() -> list[str]:
    source = random.Random(233)
    return [
        "".join(chr(source.randint(*source.choice(_FUZZ_BLOCKS))) for _ in range(source.randint(1, 40)))
        for _ in range(_FUZZ_TEXTS)
    ]


def require_agreement(encoder: Encoder, oracle: Encoder, texts: Sequence[str]) -> None:
    """Raise Disagreement unless both encoders give the same ids for each text."""

    def differ(texts: Sequence[str]) -> bool:
        return not all(map(np.array_equal, encoder.encode(texts), oracle.encode(texts)))

    if differ(texts):
        wrong = next((text for text in texts if differ([text])), "a batch, and of none of its texts alone,")
        raise Disagreement(f"the ids of {wrong[:80]!r} differ")


class PieceEncoder:
    """Encodes the texts of a piece, of any length in bounded memory, and compares a sample of them with the oracle.

    Args:
        engine: what encodes.
        folder: holds the tokenizer.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.encoder, self.oracle = load_encoder(engine, folder), load_oracle(folder)
        self.seen_chars = self.sampled_chars = 0

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the ids of texts.

        Raises:
            Disagreement: the oracle gives other ids for a text of the sample.
        """
        if self.encoder is not self.oracle:
            require_agreement(self.encoder, self.oracle, self.sample(texts))
        if all(len(text) <= PART_CHARS for text in texts):
            return self.encoder.encode(texts)
        return join_ids([np.concatenate([*encode_long(text, self.encoder)]) for text in texts])

    def sample(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of this batch to compare."""
        chosen = []
        for text in texts:
            self.seen_chars += len(text)
            wanted = FIRST_CHARS + self.seen_chars * SAMPLED_SHARE
            if len(text) <= LONGEST_SAMPLED_CHARS and self.sampled_chars <= wanted:
                self.sampled_chars += len(text)
                chosen.append(text)
        return chosen


_BOUNDARY = re.compile(r"(?<=[^\W\d_])(?=[ \n])|(?<=[。，])")


def encode_long(text: str, encoder: Encoder) -> Iterator[np.ndarray]:
    """Yield the ids of a text part by part; end to end they are `encoder.encode([text]).ids`.

    A cut is safe if encoding the text before and after it apart gives the same ids as encoding across it, which is
    checked from the last cut to some way past the new one. What is assumed is that text more than `LOOKAHEAD_CHARS`
    further on cannot change ids before the cut: true of any tokenizer that first splits text by a regular expression.
    Places right before a space or a line break that follows a letter are tried first; a tokenizer that lets nothing be
    cut (one that puts a prefix on each text, say) gets the whole text.
    """
    start = 0
    while len(text) - start > PART_CHARS + LOOKAHEAD_CHARS:
        near = start + PART_CHARS
        marked = [match.start() for match in _BOUNDARY.finditer(text, near - LOOKAHEAD_CHARS, near)]
        for cut in [*reversed(marked[-CUTS_TRIED:]), *range(near, near - CUTS_TRIED, -1)]:
            ahead = cut + LOOKAHEAD_CHARS
            head, tail, whole = (
                encoder.encode([part]).ids for part in (text[start:cut], text[cut:ahead], text[start:ahead])
            )
            if np.array_equal(whole, np.concatenate([head, tail])):
                break
        else:
            break
        start = cut
        yield head
    yield encoder.encode([text[start:]]).ids
