"""`ladle doctor` against a Hub: what is absent, closed, unpinned or out of reach is found, with its fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_models import make_model, make_tokenizer


@pytest.fixture
def recipe(hub, tmp_path) -> Path:
    """A recipe all of whose names are on the Hub, pinned and open."""
    source = tmp_path / "source"
    make_model("qwen3").save_pretrained(source)
    make_tokenizer().save_pretrained(source)
    model = hub.add("model", "org/tiny", {path.name: path.read_bytes() for path in source.iterdir()})
    data = hub.add("dataset", "org/text", {"train.jsonl": b'{"text": "a"}\n' * 50})
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: t\nbase: {{model: org/tiny, revision: {model.head}}}\nmix:\n  sources:\n"
        f"    - {{name: text, dataset: org/text, revision: {data.head}, ratio: 1.0}}\n"
        "  budget: {sequences: 8}\n  sequence_length: 64\n"
    )
    return path


def diagnose(client, recipe: Path, *overrides: str, **environment: str) -> dict[str, dict]:
    done = client.ladle("doctor", recipe, *overrides, "--root", recipe.parent / "runs", "--json", **environment)
    assert "Traceback" not in done.stderr, done.stderr
    found = [one for one in json.loads(done.stdout) if one["level"] != "ok"]
    assert done.returncode == (1 if any(one["level"] == "error" for one in found) else 0)
    return {one["subject"]: one for one in found}


def check(found: dict[str, dict], subject: str, level: str, message: str, fix: str) -> None:
    assert found[subject]["family"] == "hub"
    assert found[subject]["level"] == level
    assert message in found[subject]["message"]
    assert fix in found[subject]["fix"]


def test_a_mirror_that_has_everything_gives_no_alarm(client, recipe):
    assert diagnose(client, recipe) == {}


def test_absent_closed_and_unpinned_names_are_found_together(hub, client, recipe):
    hub.add("dataset", "org/closed", {"train.jsonl": b"{}\n"}, gated=True)
    hub.add("dataset", "org/private", {"train.jsonl": b"{}\n"}, private=True)
    hub.add("dataset", "HuggingFaceH4/aime_2024", {"other.parquet": b"x"})
    more = [
        {"name": "closed", "dataset": "org/closed", "ratio": 0.25},
        {"name": "private", "dataset": "org/private", "ratio": 0.25},
        {"name": "absent", "dataset": "org/absent", "ratio": 0.25},
        {"name": "unpinned", "dataset": "org/text", "ratio": 0.25},
    ]
    found = diagnose(
        client, recipe, f"mix.sources={json.dumps(more)}", f"base.revision={'a' * 40}", "evaluate.models=[base]",
        "evaluate.benchmarks=[aime24]",
    )  # fmt: skip
    check(found, "mix.sources.closed", "error", "is gated", "ask for access")
    check(found, "mix.sources.private", "error", "or it is private", "hf auth login")
    check(found, "mix.sources.absent", "error", "there is no dataset org/absent", "check the name")
    check(found, "mix.sources.unpinned", "warning", "stands for today", "revision: ")
    check(found, "base.model", "error", "has no revision aaaaaaaaaaaa", "name a branch, tag or commit")
    check(found, "evaluate.benchmarks.aime24", "error", "has no revision", "name a branch, tag or commit")


def test_no_network_and_a_dead_mirror_are_found(client, recipe):
    offline = diagnose(client, recipe, HF_HUB_OFFLINE="1")
    check(offline, "base.model", "error", "HF_HUB_OFFLINE is set", "hf download org/tiny")
    dead = diagnose(client, recipe, HF_ENDPOINT="http://127.0.0.1:9")
    check(dead, "base.model", "error", "from http://127.0.0.1:9", "HF_ENDPOINT")
    check(dead, "mix.sources.text", "error", "from http://127.0.0.1:9", "HF_ENDPOINT")
    messages = [one["message"] for one in dead.values() if "from http://127.0.0.1:9" in one["message"]]
    assert [message.endswith(" either") for message in messages] == [False] + [True] * (len(messages) - 1)
