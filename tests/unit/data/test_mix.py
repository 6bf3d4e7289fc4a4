"""The mix stage end to end, on small sources."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ladle.data import tokenize
from ladle.data.config import MixConfig
from ladle.data.store import MixedDataset
from ladle.errors import UserError
from ladle.stages import mix

from .samples import documents_of_row, make_config, make_texts, read_tree, write_jsonl, write_texts

RunMix = Callable[..., Path]
Inputs = dict[str, list[Path]]
EOS, PAD = 0, 1
HALVES = {"a": 0.5, "b": 0.5}


def read_mixture(out: Path) -> dict[str, Any]:
    return json.loads((out / "mixture.json").read_text())


def fragments_of(dataset: MixedDataset) -> list[tuple[str, int, int, list[int]]]:
    """Return (source, document, offset, tokens) of every document part of every row."""
    found = []
    for index in range(len(dataset)):
        tokens, start = dataset[index]["input_ids"].tolist(), 0
        for part in documents_of_row(dataset, index):
            found.append((part.source, part.document, part.offset, tokens[start : start + part.length]))
            start += part.length
        assert set(tokens[start:]) <= {PAD}
    return found


@pytest.mark.parametrize("packing", ["best_fit", "wrapped", "none"])
def test_rows_hold_the_documents_themselves(run_mix: RunMix, two_sources: Inputs, tokenizer: Tokenizer, packing: str):
    out = run_mix(make_config(HALVES, packing=packing), two_sources)
    texts = {"a": make_texts(1, 300), "b": make_texts(2, 200)}
    for source, document, offset, tokens in fragments_of(MixedDataset(out)):
        whole = [*tokenizer.encode(texts[source][document], add_special_tokens=False).ids, EOS]
        assert tokens == whole[offset : offset + len(tokens)]


@pytest.mark.parametrize("packing", ["best_fit", "wrapped", "none"])
@pytest.mark.parametrize("ratios", [{"a": 0.5, "b": 0.5}, {"a": 0.333, "b": 0.667}])
def test_ratios_are_exact_to_one_token(run_mix: RunMix, two_sources: Inputs, packing: str, ratios: dict[str, float]):
    out = run_mix(make_config(ratios, packing=packing, budget={"tokens": 10_007}), two_sources)
    tokens: Counter[str] = Counter()
    for source, _, _, part in fragments_of(MixedDataset(out)):
        tokens[source] += len(part)
    assert tokens.total() == 10_007
    assert all(abs(tokens[name] - ratio * 10_007) <= 1 for name, ratio in ratios.items())


def test_sequences_are_a_budget_of_tokens(run_mix: RunMix, two_sources: Inputs):
    out = run_mix(make_config(HALVES, budget={"sequences": 30}), two_sources)
    split = read_mixture(out)["splits"]["train"]
    assert split["tokens"] == 30 * 256
    assert split["rows"] in (30, 31)
    assert split["padding_tokens"] == (split["rows"] - 30) * 256


def test_sequences_of_packing_none_are_documents(run_mix: RunMix, two_sources: Inputs):
    out = run_mix(make_config({"a": 0.6, "b": 0.4}, budget={"sequences": 50}, packing="none"), two_sources)
    parts = fragments_of(MixedDataset(out))
    assert Counter(source for source, *_ in parts) == {"a": 30, "b": 20}
    assert len(MixedDataset(out)) == 50


@pytest.mark.parametrize("packing", ["best_fit", "wrapped"])
def test_only_one_document_a_source_is_cut_short(run_mix: RunMix, two_sources: Inputs, packing: str):
    parts = fragments_of(MixedDataset(run_mix(make_config(HALVES, packing=packing), two_sources)))
    lengths = Counter[tuple[str, int]]()
    for source, document, _, tokens in parts:
        lengths[source, document] += len(tokens)
    ended = {(source, document) for source, document, _, tokens in parts if tokens[-1] == EOS}
    assert len(set(lengths) - ended) <= 2
    if packing == "best_fit":
        pieces = Counter((source, document) for source, document, *_ in parts)
        assert all(count == -(-lengths[key] // 256) for key, count in pieces.items())


def test_a_small_source_is_repeated_and_that_is_reported(run_mix: RunMix, tmp_path: Path):
    inputs = {
        "source:a": [write_texts(tmp_path / "a.jsonl", make_texts(1, 300))],
        "source:b": [write_texts(tmp_path / "b.jsonl", make_texts(2, 12))],
    }
    out = run_mix(make_config(HALVES, budget={"tokens": 5000}), inputs)
    small = read_mixture(out)["sources"][1]
    assert small["train_tokens"] == 2500
    assert small["repeated_tokens"] == 2500 - small["tokens_in"] > 0
    assert small["epochs"] == pytest.approx(2500 / small["tokens_in"], abs=1e-6)
    assert small["train_documents"] == 12
    times = Counter(
        document for source, document, offset, _ in fragments_of(MixedDataset(out)) if source == "b" and offset == 0
    )
    assert {count - int(small["epochs"]) for count in times.values()} <= {0, 1}


def test_a_source_smaller_than_its_share_is_refused_past_max_epochs(run_mix: RunMix, tmp_path: Path):
    inputs = {"source:a": [write_texts(tmp_path / "a.jsonl", make_texts(1, 5))]}
    with pytest.raises(
        UserError, match=r"source a holds .* tokens and its share is 100,000, which is .* epochs \(max_epochs=4\)"
    ):
        run_mix(make_config({"a": 1.0}, budget={"tokens": 100_000}), inputs)


@pytest.mark.parametrize("packing", ["best_fit", "wrapped", "none"])
def test_every_token_is_accounted_for(run_mix: RunMix, two_sources: Inputs, packing: str):
    config = make_config(HALVES, packing=packing, validation={"fraction": 0.1}, sequence_length=64)
    for source in read_mixture(run_mix(config, two_sources))["sources"]:
        out = source["train_tokens"] + source["validation_tokens"] + sum(source["dropped_tokens"].values())
        assert source["tokens_in"] + source["repeated_tokens"] == out
        assert (source["dropped_tokens"]["truncated"] > 0) == (packing == "none")
        assert sum(source["length_histogram"].values()) == source["rows_read"]


@pytest.mark.parametrize("validation", [{"fraction": 0.1}, {"sequences": 4}])
def test_held_out_documents_are_never_trained_on(run_mix: RunMix, two_sources: Inputs, validation: dict[str, float]):
    out = run_mix(make_config(HALVES, validation=validation), two_sources)
    held_out = {(source, document) for source, document, *_ in fragments_of(MixedDataset(out, "validation"))}
    trained = {(source, document) for source, document, *_ in fragments_of(MixedDataset(out))}
    assert not held_out & trained
    if "fraction" in validation:
        assert Counter(source for source, _ in held_out) == {"a": 30, "b": 20}
    else:
        assert read_mixture(out)["splits"]["validation"]["tokens"] == 4 * 256


def test_validation_may_not_use_up_a_source(run_mix: RunMix, two_sources: Inputs):
    with pytest.raises(UserError, match="validation would take .* tokens of source a"):
        run_mix(make_config(HALVES, validation={"sequences": 10_000}), two_sources)


@pytest.mark.parametrize("packing", ["best_fit", "wrapped", "none"])
def test_worker_count_and_restarts_do_not_show(
    run_mix: RunMix, two_sources: Inputs, packing: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenize, "SMALL_INPUT_BYTES", 0)
    trees = [
        read_tree(run_mix(make_config(HALVES, packing=packing, workers=workers), two_sources, f"mixed-{workers}"))
        for workers in (1, 2)
    ]
    assert trees[0] == trees[1]
    assert len([name for name in trees[0] if name.startswith("tokens/")]) > 10


@pytest.mark.slow
def test_eight_workers_make_the_same_bytes(run_mix: RunMix, two_sources: Inputs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenize, "SMALL_INPUT_BYTES", 0)
    one, eight = (read_tree(run_mix(make_config(HALVES, workers=n), two_sources, f"mixed-{n}")) for n in (1, 8))
    assert one == eight


def test_the_artifact_names_no_place_on_this_machine(run_mix: RunMix, two_sources: Inputs, tmp_path: Path):
    out = run_mix(make_config(HALVES), two_sources)
    assert not [name for name, content in read_tree(out).items() if str(tmp_path).encode() in content]
    assert {path.name for path in out.iterdir()} == {"tokens", "train", "mixture.json"}


def test_the_seed_decides_documents_and_order(run_mix: RunMix, two_sources: Inputs):
    one, other = (run_mix(make_config(HALVES, seed=seed), two_sources, f"mixed-{seed}") for seed in (1, 2))
    documents = [{part[:2] for part in fragments_of(MixedDataset(out))} for out in (one, other)]
    assert documents[0] != documents[1]
    assert read_mixture(one)["shards"] == read_mixture(other)["shards"]


def test_rows_mix_the_sources(run_mix: RunMix, two_sources: Inputs):
    dataset = MixedDataset(run_mix(make_config(HALVES), two_sources))
    first_half = Counter(part.source for row in range(len(dataset) // 2) for part in documents_of_row(dataset, row))
    assert min(first_half.values()) > 0.3 * first_half.total()


def test_another_ratio_tokenizes_nothing_again(
    run_mix: RunMix, two_sources: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = str(tmp_path / "cache")
    first = run_mix(make_config(HALVES, cache=cache), two_sources, "first")

    def refuse(task: Any, out: Path) -> None:
        raise AssertionError(f"tokenized again: {task.piece}")

    monkeypatch.setattr(tokenize, "tokenize_piece", refuse)
    second = run_mix(make_config({"a": 0.3, "b": 0.7}, cache=cache), two_sources, "second")
    name = read_mixture(first)["shards"][0]["file"]
    assert (first / name).stat().st_ino == (second / name).stat().st_ino
    with pytest.raises(AssertionError, match="tokenized again"):
        run_mix(make_config(HALVES, cache=cache, add_bos=True), two_sources, "third")


def test_a_shard_damaged_in_the_cache_is_made_again(run_mix: RunMix, two_sources: Inputs, tmp_path: Path):
    config = make_config(HALVES, cache=str(tmp_path / "cache"))
    first = read_tree(run_mix(config, two_sources, "first"))
    shard = next((tmp_path / "cache").rglob("*.tokens"))
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.unlink()
    shard.write_bytes(content)
    assert read_tree(run_mix(config, two_sources, "second")) == first


def test_leftovers_of_an_earlier_try_are_cleared(run_mix: RunMix, two_sources: Inputs, tmp_path: Path):
    clean = read_tree(run_mix(make_config(HALVES), two_sources, "clean"))
    leftover = tmp_path / "again"
    (leftover / "train").mkdir(parents=True)
    (leftover / "train" / "rows.bin").write_bytes(b"half")
    (leftover / "tokens").mkdir()
    (leftover / "tokens" / "old.tokens").write_bytes(b"old")
    assert read_tree(run_mix(make_config(HALVES), two_sources, "again")) == clean


@pytest.mark.parametrize("content", ["", '{"text": ""}\n{"text": ""}\n'])
def test_an_empty_source_is_refused(run_mix: RunMix, tmp_path: Path, content: str):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"source a \(split train\) holds no documents"):
        run_mix(make_config({"a": 1.0}), {"source:a": [tmp_path / "a.jsonl"]})


def mixed_types(bad: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"text": text} for text in make_texts(1, 200)]
    for index in range(bad):
        rows[20 + index * 5] = {"text": index}
    return rows


def test_a_column_of_mixed_types_is_counted_and_capped(run_mix: RunMix, tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", mixed_types(4))
    with pytest.raises(
        UserError,
        match=r"4 of the 200 rows of source a are unusable .*4 not_text.*row 21 of .*a.jsonl .*max_bad_fraction=0.02",
    ):
        run_mix(make_config({"a": 1.0}), {"source:a": [path]})
    out = run_mix(make_config({"a": 1.0}, max_bad_fraction=0.02), {"source:a": [path]}, "allowed")
    assert read_mixture(out)["sources"][0]["dropped_rows"] == {"not_text": 4}
    assert not {20, 25, 30, 35} & {document for _, document, *_ in fragments_of(MixedDataset(out))}


@pytest.mark.parametrize("bad", [1, 3, 7])
def test_the_fraction_that_is_named_would_do(run_mix: RunMix, tmp_path: Path, bad: int):
    texts: list[object] = [*make_texts(1, 301 - bad), *range(bad)]
    path = write_texts(tmp_path / "a.jsonl", texts)
    with pytest.raises(UserError) as refused:
        run_mix(make_config({"a": 1.0}), {"source:a": [path]})
    named = float(refused.value.fix.partition("max_bad_fraction=")[2])
    assert bad / 301 <= named < 1.2 * bad / 301
    run_mix(make_config({"a": 1.0}, max_bad_fraction=named), {"source:a": [path]}, "allowed")


def test_rows_left_out_are_said_on_the_screen_source_by_source(
    run_mix: RunMix, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    lines = [json.dumps({"text": text}) for text in make_texts(1, 1998)]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join([*lines, '{"text": "half \\ud83d"}', "{cut"]))
    out = run_mix(make_config({"a": 1.0}), {"source:a": [tmp_path / "a.jsonl"]})
    said = "2 of the 2,000 rows of source a are left out (1 bad_json, 1 bad_utf8), such as row 1999 of "
    assert said in caplog.text
    assert read_mixture(out)["sources"][0]["dropped_rows"] == {"bad_json": 1, "bad_utf8": 1}


@pytest.mark.parametrize(
    ("text", "tail"),
    [("a<eos>", ""), ("a<eos>\n", ""), ("a<eos> \n\n", ""), ("a", "<eos>"), ("a\n", "<eos>"), ("<eos>a", "<eos>")],
)
def test_a_text_that_ends_with_eos_gets_no_second_one(
    run_mix: RunMix, tmp_path: Path, tokenizer: Tokenizer, text: str, tail: str
):
    path = write_texts(tmp_path / "a.jsonl", [text])
    (part,) = fragments_of(MixedDataset(run_mix(make_config({"a": 1.0}, budget={"sequences": 1}, packing="none"),
                                                {"source:a": [path]})))  # fmt: skip
    assert part[3] == tokenizer.encode(text + tail).ids


def test_a_chat_has_the_ids_that_its_template_gives(tmp_path: Path, tokenizer_folder: Path, tokenizer: Tokenizer):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<eos>\\n' }}{% endfor %}"
    chats = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=template
    )
    chats.save_pretrained(tmp_path / "chats", save_jinja_files=False)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the prime"}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": messages}])
    source = {"name": "a", "dataset": "a", "ratio": 1.0, "format": "messages"}
    config = make_config({}, sources=[source], budget={"sequences": 1}, packing="none")
    (tmp_path / "out").mkdir()
    mix.run(config, {"tokenizer": [tmp_path / "chats"], "source:a": [path]}, tmp_path / "out")
    (part,) = fragments_of(MixedDataset(tmp_path / "out"))
    assert part[3] == chats.apply_chat_template(messages, return_dict=False)
    assert part[3].count(EOS) == 2


def test_a_chat_that_the_template_refuses_is_a_bad_row(tmp_path: Path, tokenizer: Tokenizer):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    chats = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=template
    )
    chats.save_pretrained(tmp_path / "chats", save_jinja_files=False)
    rows = [{"messages": [{"role": role, "content": "hi"}]} for role in ("user", "system", "user")]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    source = {"name": "a", "dataset": "a", "ratio": 1.0, "format": "messages"}
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"1 refused_by_chat_template\), such as row 2 of"):
        mix.run(
            make_config({}, sources=[source]), {"tokenizer": [tmp_path / "chats"], "source:a": [path]}, tmp_path / "out"
        )


def test_what_a_chat_template_leaves_out_is_counted(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<eos>' }}{% endfor %}"
    chats = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=template
    )
    chats.save_pretrained(tmp_path / "chats", save_jinja_files=False)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    ask, answer = {"role": "user", "content": "the prime"}, {"role": "assistant", "content": "the prime"}
    rows = [
        {"messages": [ask, answer]},
        {"messages": [ask, call]},
        {"messages": [ask, answer], "tools": [{"function": {"name": "search"}}]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    source = {"name": "a", "dataset": "a", "ratio": 1.0, "format": "messages"}
    config = make_config({}, sources=[source], budget={"sequences": 1}, packing="none")
    (tmp_path / "out").mkdir()
    mix.run(config, {"tokenizer": [tmp_path / "chats"], "source:a": [path]}, tmp_path / "out")
    assert read_mixture(tmp_path / "out")["sources"][0]["unwritten_rows"] == {"tool_calls": 1, "tools": 1}
    assert "does not write all of tool_calls in 1 of the 3 rows of source a" in caplog.text


@pytest.mark.parametrize("ids", [[5, 6, PAD, PAD], [PAD, PAD, 7]])
def test_padding_within_token_ids_is_refused(run_mix: RunMix, tmp_path: Path, ids: list[int]):
    path = write_jsonl(tmp_path / "a.jsonl", [{"input_ids": [5, 6]}, {"input_ids": ids}])
    source = {"name": "a", "dataset": "a", "ratio": 1.0, "format": "input_ids"}
    with pytest.raises(UserError, match=r"1 of the 2 rows of source a are unusable \(1 padded\), such as row 2"):
        run_mix(make_config({}, sources=[source], budget={"tokens": 4}), {"source:a": [path]})


def test_empty_rows_are_counted_and_not_bad(run_mix: RunMix, tmp_path: Path):
    path = write_texts(tmp_path / "a.jsonl", ["", *make_texts(1, 200), ""])
    out = run_mix(make_config({"a": 1.0}), {"source:a": [path]})
    assert read_mixture(out)["sources"][0]["dropped_rows"] == {"empty": 2}


def test_ids_past_the_models_vocabulary_are_refused(tmp_path: Path, tokenizer_folder: Path):
    (tmp_path / "mixed").mkdir()
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text('{"vocab_size": 300}')
    inputs = {"tokenizer": [folder], "source:a": [write_texts(tmp_path / "a.jsonl", make_texts(1, 200))]}
    with pytest.raises(UserError, match=r"source a holds token id \d+ and the model's vocab_size is 300"):
        mix.run(make_config({"a": 1.0}), inputs, tmp_path / "mixed")


def test_token_ids_are_taken_as_they_are(run_mix: RunMix, tmp_path: Path):
    documents = [[5, 6, 7], [8, EOS], [9]]
    path = write_jsonl(tmp_path / "a.jsonl", ({"input_ids": document} for document in documents))
    sources = [{"name": "a", "dataset": "a", "ratio": 1.0, "format": "input_ids"}]
    out = run_mix(make_config({}, sources=sources, budget={"tokens": 8}, sequence_length=4), {"source:a": [path]})
    parts = fragments_of(MixedDataset(out))
    assert sorted(tokens for *_, tokens in parts) == [[5, 6, 7, EOS], [8, EOS], [9, EOS]]


def test_bos_is_put_before_each_document(run_mix: RunMix, two_sources: Inputs):
    parts = fragments_of(MixedDataset(run_mix(make_config(HALVES, add_bos=True), two_sources)))
    assert all((tokens[0] == 2) == (offset == 0) for _, _, offset, tokens in parts)


def test_bos_is_refused_where_the_tokenizer_has_none(tmp_path: Path, tokenizer_folder: Path, two_sources: Inputs):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (tmp_path / "mixed").mkdir()
    (folder / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    with pytest.raises(UserError, match="the tokenizer names no bos_token"):
        mix.run(make_config(HALVES, add_bos=True), {"tokenizer": [folder], **two_sources}, tmp_path / "mixed")


def test_a_worker_names_what_it_could_not_read(
    run_mix: RunMix, two_sources: Inputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(tokenize, "SMALL_INPUT_BYTES", 0)
    damaged = tmp_path / "b.jsonl.gz"
    damaged.write_bytes(gzip.compress(two_sources["source:b"][0].read_bytes())[:-200])
    with pytest.raises(UserError, match="b.jsonl.gz cannot be read: .*fetch the file again"):
        run_mix(make_config(HALVES, workers=2), two_sources | {"source:b": [damaged]})


def test_padding_falls_back_to_eos(tmp_path: Path, tokenizer_folder: Path, two_sources: Inputs):
    folder, out = tmp_path / "tokenizer", tmp_path / "mixed"
    folder.mkdir()
    out.mkdir()
    (folder / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<eos>"}}')
    mix.run(make_config(HALVES, packing="none"), {"tokenizer": [folder], **two_sources}, out)
    row = MixedDataset(out)[0]
    assert row["input_ids"][-1] == EOS
    assert row["labels"][-1] == -100


def test_frozen_rows(run_mix: RunMix, two_sources: Inputs):
    """The same recipe has to give the same rows in the next version too; a change here belongs in the changelog."""
    dataset = MixedDataset(run_mix(make_config(HALVES), two_sources))
    first = [(part.source, part.document, part.offset, part.length) for part in documents_of_row(dataset, 0)]
    assert (len(dataset), first) == (40, [("a", 47, 0, 77), ("b", 158, 0, 83), ("a", 266, 0, 96)])


def test_config_fields_that_only_say_how_do_not_change_the_bytes(run_mix: RunMix, two_sources: Inputs, tmp_path: Path):
    plain = read_tree(run_mix(make_config(HALVES), two_sources, "plain"))
    other: MixConfig = make_config(HALVES, workers=0, cache=str(tmp_path / "cache"))
    assert read_tree(run_mix(other, two_sources, "other")) == plain


def test_padding_labels_and_positions(run_mix: RunMix, two_sources: Inputs):
    dataset = MixedDataset(run_mix(make_config(HALVES, packing="none"), two_sources))
    row, (length,) = dataset[3], dataset.lengths_of_row(3)
    assert np.array_equal(row["labels"][1:length], row["input_ids"][1:length])
    assert (row["labels"][length:] == -100).all()
    assert row["labels"][0] == -100
    assert row["position_ids"].tolist() == [*range(length), *range(256 - length)]
