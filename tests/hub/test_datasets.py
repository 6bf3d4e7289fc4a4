"""Datasets and tokenizers of the Hub, by the commands that take them."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

CARD = """---
configs:
- config_name: easy
  data_files: [{split: train, path: easy/train.parquet}, {split: test, path: easy/test.parquet}]
- config_name: hard
  data_files: [{split: train, path: hard/train.parquet}]
---
"""


def parquet(texts: list[str]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), stream)
    return stream.getvalue()


@pytest.fixture
def dataset(hub):
    files = {
        "README.md": CARD.encode(),
        "easy/train.parquet": parquet([f"seven {i} wizards prove the theorem" for i in range(400)]),
        "easy/test.parquet": parquet(["held out"] * 7),
        "hard/train.parquet": parquet(["hard"] * 3),
    }
    return hub.add("dataset", "org/data", files)


@pytest.fixture
def model(hub, tmp_path):
    """A repository of a model with a tokenizer and weights."""
    from tests.tiny_models import make_tokenizer

    source = tmp_path / "model"
    make_tokenizer().save_pretrained(source)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    return hub.add("model", "org/model", files | {"model.safetensors": bytes(2_000_000), "config.json": b"{}"})


def test_every_split_of_a_dataset_is_brought_to_disk(client, dataset, tmp_path):
    out = tmp_path / "easy"
    done = client.ladle("fetch", "--dataset", "org/data:easy", "--out", out)
    assert done.returncode == 0, done.stderr
    assert {path.stem: pq.read_table(path).num_rows for path in out.glob("*.parquet")} == {"train": 400, "test": 7}
    assert dataset.head in (out / "record.json").read_text()
    for name in ("org/data:medium", "org/data"):
        wrong = client.ladle("fetch", "--dataset", name, "--out", tmp_path / "wrong")
        assert wrong.returncode == 2, wrong.stderr
        assert "easy" in wrong.stderr
        assert "hard" in wrong.stderr


def test_a_mixture_needs_no_model_but_its_tokenizer(hub, client, dataset, model, tmp_path):
    recipe = {
        "name": "mixture",
        "mix": {
            "tokenizer": "org/model",
            "tokenizer_revision": model.head,
            "sources": [{"name": "easy", "dataset": "org/data:easy", "revision": dataset.head, "ratio": 1.0}],
            "budget": {"tokens": 2_000},
            "sequence_length": 64,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = client.ladle("mix", "--config", path, "--out", tmp_path / "mixture")
    assert done.returncode == 0, done.stderr
    source = json.loads((tmp_path / "mixture" / "mixture.json").read_text())["sources"][0]
    assert (source["rows_read"], source["train_tokens"]) == (400, 2_000)
    assert not [asked for asked in hub.downloads() if "safetensors" in asked]


def test_two_tokenizers_in_one_recipe_are_refused(client, dataset, model, tmp_path):
    path = tmp_path / "recipe.yaml"
    sources = "[{name: easy, dataset: 'org/data:easy', ratio: 1.0}]"
    path.write_text(
        "name: two\nbase: {model: org/model}\n"
        f"mix: {{tokenizer: org/model, sources: {sources}, budget: {{tokens: 9}}}}\n"
    )
    done = client.ladle("plan", path)
    assert done.returncode == 2
    assert "mix.tokenizer" in done.stderr
    assert "base" in done.stderr
