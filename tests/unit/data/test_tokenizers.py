"""Tokenizers read from vocabularies of other libraries, on small made-up ones; the real ones are under parity."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from ladle.data.encoders import read_vocabulary
from ladle.errors import UserError
from ladle.models.tokenizer import convert_tokenizer, load_fast_tokenizer

from .samples import save_tokenizer

MERGED = [b"he", b"ll", b"hell", b"hello", b" w", b"or", b" wor", b"\xe6\xb1", b"\xe6\xb1\x89", b"\xc3\xa9"]
TOKENS = [bytes([byte]) for byte in range(256)] + MERGED


def write_tiktoken(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(TOKENS))
    (folder / "qwen.tiktoken").write_text("".join(lines))
    settings = {
        "tokenizer_class": "QWenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        "chat_template": "{{ messages[0]['content'] }}",
        "model_max_length": 128,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | config))
    (folder / "special_tokens_map.json").write_text(
        '{"bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "pad_token": "<|endoftext|>"}'
    )
    return folder


def names(tokenizer: Any, text: str) -> list[bytes]:
    return [TOKENS[index] if index < len(TOKENS) else b"special" for index in tokenizer.encode(text)]


def test_tiktoken_ids_follow_the_ranks(tmp_path: Path):
    tokenizer = load_fast_tokenizer(write_tiktoken(tmp_path))
    assert names(tokenizer, "hello world") == [b"hello", b" wor", b"l", b"d"]
    assert names(tokenizer, "汉e\u0301") == [b"\xe6\xb1\x89", b"\xc3\xa9"], "NFC composes e and its accent"
    assert tokenizer.encode("<|im_end|>a<|extra_204|>") == [258 + 10, ord("a"), 258 + 10 + 205]
    assert tokenizer.decode(tokenizer.encode("hello wörld 汉")) == "hello wörld 汉"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (472, 473, 266)
    assert len(tokenizer) == 256 + 10 + 208


def test_a_converted_tokenizer_loads_without_code_of_the_repository(tmp_path: Path):
    report = convert_tokenizer(write_tiktoken(tmp_path / "source"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "auto_map" not in config
    assert config["chat_template"] == "{{ messages[0]['content'] }}"
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.encode("hello") == [TOKENS.index(b"hello")]
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert loaded.model_max_length == 128
    expected = {
        "vocabulary": "qwen.tiktoken",
        "tokens": 474,
        "added_tokens": 208,
        "converted": True,
        "remote_code_dropped": True,
    }
    assert expected.items() <= report.items()


def test_converting_again_changes_nothing(tmp_path: Path):
    convert_tokenizer(write_tiktoken(tmp_path / "source"), tmp_path / "one")
    report = convert_tokenizer(tmp_path / "one", tmp_path / "two")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "one" / name).read_text()) == json.loads((tmp_path / "two" / name).read_text())
    assert not report["converted"]


def test_an_unknown_class_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="belongs to tokenizer class 'OtherTokenizer'.*Ladle knows QWenTokenizer"):
        load_fast_tokenizer(write_tiktoken(tmp_path, tokenizer_class="OtherTokenizer"))


@pytest.mark.parametrize("line", ["not base64! 3", "YQ==", "YQ== x"])
def test_a_damaged_vocabulary_names_the_line(tmp_path: Path, line: str):
    path = write_tiktoken(tmp_path) / "qwen.tiktoken"
    lines = path.read_text().splitlines()
    lines[6] = line
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"qwen.tiktoken:7 is not `<base64> <rank>`"):
        load_fast_tokenizer(tmp_path)


def test_a_vocabulary_with_a_hole_is_refused(tmp_path: Path):
    path = write_tiktoken(tmp_path) / "qwen.tiktoken"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    with pytest.raises(UserError, match="ranks .* are not 0 to 264"):
        load_fast_tokenizer(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path):
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UserError, match=r"there is no tokenizer in .* \(it holds weights.bin\)"):
        load_fast_tokenizer(tmp_path)


def test_padding_falls_back_to_eos(tmp_path: Path):
    save_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_fast_tokenizer(tmp_path).pad_token == "<eos>"


def write_sentencepiece(path: Path, pieces: list[tuple[str, float, int]], model_type: int, **normalizer: bool) -> None:
    proto = import_protobuf().ModelProto()  # type: ignore[attr-defined]
    for piece, score, kind in pieces:
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = model_type
    proto.trainer_spec.byte_fallback = True
    for name, value in normalizer.items():
        setattr(proto.normalizer_spec, name, value)
    path.write_bytes(proto.SerializeToString())


SPECIAL = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
BYTES = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
PIECES = [
    ("▁a", -1.0, 1),
    ("ab", -1.9, 1),
    ("▁ab", -6.0, 1),
    ("▁", -3.0, 1),
    ("a", -3.5, 1),
    ("b", -4.0, 1),
    ("[X]", 0.0, 4),
]


@pytest.mark.parametrize(
    ("model_type", "text", "expected"),
    [
        (1, "ab", ["▁", "ab"]),  # -3 - 1.9 beats ▁a b (-5) and ▁ab (-6)
        (2, "ab", ["▁ab"]),  # ▁a is merged first, and then ▁a with b
        (1, "[X]a", ["[X]", "▁a"]),
        (2, "aé", ["▁a", "<0xC3>", "<0xA9>"]),
    ],
)
def test_sentencepiece_is_read_by_its_own_algorithm(tmp_path: Path, model_type: int, text: str, expected: list[str]):
    write_sentencepiece(tmp_path / "tokenizer.model", SPECIAL + BYTES + PIECES, model_type, add_dummy_prefix=True)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = load_fast_tokenizer(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == expected
    assert (tokenizer.bos_token, tokenizer.eos_token_id, tokenizer.pad_token) == ("<s>", 2, "</s>")


def test_damaged_sentencepiece_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0e\xff\xff\xff garbage")
    with pytest.raises(UserError, match="is not a sentencepiece model"):
        load_fast_tokenizer(tmp_path)


def test_the_vocabulary_of_a_mixture_is_converted_where_needed(tmp_path: Path):
    vocabulary = read_vocabulary(write_tiktoken(tmp_path / "source"), tmp_path / "scratch")
    assert (vocabulary.eos_id, vocabulary.pad_id, vocabulary.bos_id, vocabulary.vocab_size) == (473, 266, 472, 474)
    assert vocabulary.folder == tmp_path / "scratch"
    assert vocabulary.token_dtype == "<u2"


def test_the_models_vocabulary_counts_where_it_is_known(tmp_path: Path):
    save_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"vocab_size": 70000}')
    vocabulary = read_vocabulary(tmp_path, tmp_path / "scratch")
    assert (vocabulary.vocab_size, vocabulary.token_dtype) == (70_000, "<u4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not JSON: .*fetch it again"),
        ("tokenizer.json", '{"model": 5}', "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", '{"eos_token": "<end>"}', "names '<end>' as its eos_token and has no such token"),
        ("tokenizer_config.json", "{}", "names no eos_token"),
    ],
)
def test_a_broken_tokenizer_is_refused(tmp_path: Path, name: str, content: str, message: str):
    (save_tokenizer(tmp_path) / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_vocabulary(tmp_path, tmp_path / "unused")
