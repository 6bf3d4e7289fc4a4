from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.data import contamination
from ladle.data.contamination import BenchmarkText, NgramSet, find_contamination, ngram_hashes
from ladle.data.encoders import read_vocabulary
from ladle.data.tokenize import find_pieces
from ladle.executors import ProcessExecutor

from .samples import make_config, make_texts, write_jsonl

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many?"
CHINESE = "一个农场里有鸡和兔子共三十五只，脚共有九十四只，问鸡和兔子各有多少只？"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one two three", 3),
        ("one, two; three!", 3),
        ("x=5, y=-7.5", 5),
        ("中文 字", 3),
        ("café Ünïcode", 2),
        ("日本語とabc", 5),
        ("“a”—b…c", 3),
        ("", 0),
        ("한국어 kana カナ", 6),
    ],
)
def test_words(text: str, words: int):
    assert [len(ngram_hashes([text], n)[0]) for n in (1, 2)] == [words, max(0, words - 1)]


@given(words=st.lists(st.sampled_from(["a", "b", "c1", "中"]), min_size=0, max_size=30), n=st.integers(1, 5))
def test_equal_ngrams_have_equal_hashes_and_others_differ(words: list[str], n: int):
    hashes, _ = ngram_hashes([" ".join(words)], n)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert len(hashes) == len(grams)
    assert len({*zip(hashes.tolist(), grams, strict=True)}) == len(set(grams)) == len(set(hashes.tolist()))


def test_case_spacing_and_punctuation_do_not_hide_a_copy():
    ngrams = NgramSet(np.unique(ngram_hashes([QUESTION], 13)[0]), 13)
    disguised = "…and so: " + QUESTION.upper().replace(" ", "\n**").replace(",", " —")
    ((_, count, _),) = ngrams.find([disguised])
    assert count == len(QUESTION.split()) - 12
    assert ngrams.find(["x " + " ".join(QUESTION.split()[:12])]) == []


@given(texts=st.lists(st.text(st.sampled_from("ab1 ,中カ\u0130"), max_size=40), max_size=9), n=st.integers(1, 4))
def test_texts_searched_together_are_as_each_alone(texts: list[str], n: int):
    hashes, owners = ngram_hashes(texts, n)
    for index, text in enumerate(texts):
        assert hashes[owners == index].tolist() == ngram_hashes([text], n)[0].tolist()


@pytest.mark.parametrize("words_at_a_time", [1, 2, 7])
def test_hashes_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch, words_at_a_time: int):
    whole, _ = ngram_hashes([QUESTION, CHINESE], 3)
    monkeypatch.setattr(contamination, "WORDS_AT_A_TIME", words_at_a_time)
    assert ngram_hashes([QUESTION, CHINESE], 3)[0].tolist() == whole.tolist()


@pytest.fixture
def contaminated(tmp_path: Path) -> Path:
    texts = make_texts(1, 300)
    texts[7] = f"{texts[7]} {QUESTION}"
    texts[250] = CHINESE
    return write_jsonl(tmp_path / "a.jsonl", ({"text": text} for text in texts))


def search(path: Path, tokenizer_folder: Path, kept: Path, texts: list[BenchmarkText], **source: Any):
    config = make_config({}, sources=[{"name": "a", "dataset": "a", "ratio": 1.0} | source]).sources[0]
    vocabulary = read_vocabulary(tokenizer_folder, kept / "tokenizer")
    pieces = find_pieces(config, [path], 4096)
    assert len(pieces) > 3
    return find_contamination([config], [pieces], texts, 13, vocabulary, ProcessExecutor(1))


def test_documents_and_items_are_named(contaminated: Path, tokenizer_folder: Path, tmp_path: Path):
    texts = [
        BenchmarkText("gsm8k", "0", QUESTION),
        BenchmarkText("gsm8k", "1", "Too short to search for."),
        BenchmarkText("cmath", "x", CHINESE),
    ]
    found = search(contaminated, tokenizer_folder, tmp_path / "kept", texts)
    assert [documents.tolist() for documents in found.documents] == [[7, 250]]
    assert [(find["document"], find["benchmark"], find["item"]) for find in found.finds] == [
        (7, "gsm8k", "0"),
        (250, "cmath", "x"),
    ]
    assert found.finds[0]["ngrams"] == len(QUESTION.split()) - 12
    assert found.summary == {
        "cmath": {"items": 1, "items_too_short": 0, "documents": 1},
        "gsm8k": {"items": 2, "items_too_short": 1, "documents": 1},
    }


def test_tokenized_sources_are_searched_too(tmp_path: Path, tokenizer_folder: Path, tokenizer: Any):
    rows = [{"input_ids": tokenizer.encode(text).ids} for text in [*make_texts(1, 100), QUESTION]]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    found = search(
        path, tokenizer_folder, tmp_path / "kept", [BenchmarkText("gsm8k", "0", QUESTION)], format="input_ids"
    )
    assert found.documents[0].tolist() == [100]


@pytest.mark.parametrize("drop", [True, False])
def test_the_stage_drops_or_only_reports(run_mix: Callable[..., Path], contaminated: Path, tmp_path: Path, drop: bool):
    benchmark = write_jsonl(
        tmp_path / "benchmarks" / "gsm8k" / "test.jsonl", [{"question": QUESTION, "answer": "48+24\n#### 72"}]
    )
    config = make_config(
        {"a": 1.0}, contamination={"benchmarks": ["gsm8k"], "data": "x", "drop": drop}, budget={"tokens": 20_000}
    )
    out = run_mix(config, {"source:a": [contaminated], "benchmarks": [benchmark.parent.parent]})
    mixture = json.loads((out / "mixture.json").read_text())
    assert mixture["contamination"]["benchmarks"] == {"gsm8k": {"items": 1, "items_too_short": 0, "documents": 1}}
    assert (
        mixture["sources"][0]["contaminated_documents"],
        mixture["sources"][0]["dropped_tokens"]["contaminated"] > 0,
    ) == (
        int(drop),
        drop,
    )
    find = json.loads((out / "contamination.jsonl").read_text())
    assert (find["source"], find["document"], find["benchmark"], find["item"]) == ("a", 7, "gsm8k", "0")
