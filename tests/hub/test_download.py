"""Downloads from a Hub: pinned commits, resume, checksums, closed repositories, no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SMALL = b'{"model_type": "llama"}'
LARGE = bytes(range(256)) * 5_000  # 1.3 MB, an LFS file
HUGE = bytes(range(256)) * 100_000  # 26 MB: huggingface_hub writes 10 MB at a time


@pytest.fixture
def repository(hub):
    return hub.add("model", "org/name", {"config.json": SMALL, "model.safetensors": LARGE})


def test_a_branch_stands_for_its_commit_and_is_remembered_without_a_network(hub, client, repository):
    assert client.ask("resolve_commit", "model", "org/name", None) == {"value": repository.head}
    before = len(hub.requests)
    assert client.ask("resolve_commit", "model", "org/name", None, HF_HUB_OFFLINE="1") == {"value": repository.head}
    assert len(hub.requests) == before


def test_a_commit_is_not_asked_about(hub, client):
    commit = "0123456789" * 4
    assert client.ask("resolve_commit", "model", "org/name", commit) == {"value": commit}
    assert hub.requests == []


def test_a_pinned_commit_stays_what_it_was(client, repository):
    pinned = repository.head
    repository.commit({"config.json": b'{"model_type": "other"}'})
    folder = Path(client.ask("snapshot", "model", "org/name", pinned)["value"])
    assert (folder / "config.json").read_bytes() == SMALL
    assert (folder / "model.safetensors").read_bytes() == LARGE


def test_a_download_that_broke_off_goes_on_from_there(hub, client, repository):
    repository.commit({"model.safetensors": HUGE})
    hub.break_off_after["model.safetensors"] = 23_000_000
    folder = Path(client.ask("snapshot", "model", "org/name", repository.head)["value"])
    assert (folder / "model.safetensors").read_bytes() == HUGE
    assert [wanted for method, path, wanted in hub.requests if "/cdn/" in path and method == "GET"] == [
        "",
        "bytes=20971520-",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_bytes_that_changed_on_the_way_are_refused_and_fetched_anew(hub, client, repository, name):
    hub.corrupt.add(name)
    refused = client.ask("snapshot", "model", "org/name", repository.head)
    assert name in refused["problem"]
    assert "other bytes than the Hub has" in refused["problem"]
    hub.corrupt.clear()
    folder = Path(client.ask("snapshot", "model", "org/name", repository.head)["value"])
    assert (folder / name).read_bytes() == {"model.safetensors": LARGE, "config.json": SMALL}[name]


def test_one_file_is_fetched_alone(hub, client):
    files = {"data/test.jsonl": b'{"a": 1}\n' * 200, "data/huge.parquet": LARGE, "README.md": b"card"}
    dataset = hub.add("dataset", "org/items", files)
    path = Path(client.ask("snapshot", "dataset", "org/items", dataset.head, "data/test.jsonl")["value"])
    assert path.name == "test.jsonl"
    assert path.read_bytes() == files["data/test.jsonl"]
    assert not [asked for asked in hub.downloads() if "huge" in asked or "README" in asked]


def test_what_is_cached_needs_no_network(hub, client, repository):
    folder = client.ask("snapshot", "model", "org/name", repository.head)["value"]
    before = len(hub.requests)
    assert client.ask("snapshot", "model", "org/name", repository.head, HF_HUB_OFFLINE="1") == {"value": folder}
    assert len(hub.requests) == before


def test_offline_without_a_cache_says_how_to_get_it(client, repository):
    refused = client.ask("snapshot", "model", "org/name", repository.head, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in refused["problem"]
    assert "hf download org/name" in refused["fix"]


@pytest.mark.parametrize("token", ["", "hf_good"])
def test_a_gated_repository_says_where_to_ask(hub, client, token):
    closed = hub.add("model", "org/closed", {"config.json": SMALL}, gated=True)
    refused = client.ask("snapshot", "model", "org/closed", closed.head, **({"HF_TOKEN": token} if token else {}))
    assert "is gated" in refused["problem"]
    assert ("the logged-in user" if token else "an anonymous user") in refused["problem"]
    assert f"{client.url}/org/closed" in refused["fix"]
    assert "hf auth login" in refused["fix"]


def test_a_private_repository_opens_with_a_token(hub, client):
    private = hub.add("model", "org/private", {"config.json": SMALL}, private=True)
    refused = client.ask("resolve_commit", "model", "org/private", None)
    assert "or it is private" in refused["problem"]
    assert client.ask("resolve_commit", "model", "org/private", None, HF_TOKEN="hf_good") == {"value": private.head}


def test_a_missing_repository_revision_or_file_is_named(client, repository):
    assert "there is no model org/absent" in client.ask("resolve_commit", "model", "org/absent", None)["problem"]
    assert "has no revision v9" in client.ask("resolve_commit", "model", "org/name", "v9")["problem"]
    assert "lacks a file" in client.ask("snapshot", "model", "org/name", repository.head, "absent.json")["problem"]


def test_a_hub_that_cannot_be_reached_is_named(client):
    refused = client.ask("resolve_commit", "model", "org/name", None, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in refused["problem"]
    assert "HF_ENDPOINT" in refused["fix"]


def test_a_recipe_takes_its_base_from_the_mirror_at_one_commit(hub, client, tmp_path):
    from tests.tiny_models import make_model, make_tokenizer

    source = tmp_path / "source"
    make_model("llama").save_pretrained(source)
    make_tokenizer().save_pretrained(source)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    repository = hub.add("model", "org/tiny", files)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: t\nbase: {model: org/tiny}\n")
    done = client.ladle("run", recipe, "--root", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    record = next((tmp_path / "runs").rglob("record.json")).read_text()
    assert repository.head in record
    again = client.ladle("plan", recipe, "--root", tmp_path / "runs", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert "cached" in again.stdout
    before = len(hub.requests)
    elsewhere = client.ladle("run", recipe, "--root", tmp_path / "elsewhere", HF_HUB_OFFLINE="1")
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert repository.head in next((tmp_path / "elsewhere").rglob("record.json")).read_text()
    assert len(hub.requests) == before, "offline, the cache is enough"


def test_a_gated_base_ends_a_run_in_one_message(hub, client, tmp_path):
    closed = hub.add("model", "org/closed", {"config.json": SMALL}, gated=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: t\nbase: {{model: org/closed, revision: {closed.head}}}\n")
    done = client.ladle("run", recipe, "--root", tmp_path / "runs")
    assert done.returncode == 2
    assert "model org/closed is gated" in done.stderr
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_environment_of_these_tests_is_the_stand_ins_own(client):
    assert client.environment()["HF_ENDPOINT"].startswith("http://127.0.0.1:")
    assert "HF_HUB_OFFLINE" in os.environ
    assert "HF_HUB_OFFLINE" not in client.environment()
