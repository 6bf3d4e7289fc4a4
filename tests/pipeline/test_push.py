"""`ladle push`: a model, a mixture, preference data and an evaluation, loaded back from the Hub as others would."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import load_from_disk
from huggingface_hub import DatasetCard, ModelCard, RepoCard

from tests.pipeline.conftest import Run

pytestmark = pytest.mark.xdist_group("pipeline")

LOAD = """
import sys
kind, name, revision = sys.argv[1:]
if kind == "model":
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, report = AutoModelForCausalLM.from_pretrained(name, revision=revision, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    print(model.num_parameters(), len(tokenizer))
else:
    from datasets import load_dataset
    print({split: rows.num_rows for split, rows in load_dataset(name, revision=revision).items()})
"""


def push(client, artifact: Path, name: str, *more: object, token: str = "hf_good"):
    return client.ladle("push", artifact, name, *more, **({"HF_TOKEN": token} if token else {}))


def load(client, kind: str, name: str, revision: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, kind, name, revision], capture_output=True, text=True, env=client.environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def card_of(repository) -> RepoCard:
    """Return the card as huggingface_hub reads it."""
    kind = ModelCard if repository.kind == "model" else DatasetCard
    return kind(repository.commits[repository.head]["README.md"].decode())


def run_snippets(client, card: RepoCard) -> str:
    """Run the card's Python, and return what it printed."""
    snippets = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert snippets
    script = "\n".join(snippets)
    logged_in = client.environment(HF_TOKEN="hf_good")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=logged_in)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_goes_up_in_one_commit_and_loads(hub, client, tiny_run: Run):
    artifacts = tiny_run.artifacts()
    done = push(client, artifacts["kto"], "me/tiny-kto", "--results", artifacts["evaluate/kto"])
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["model", "me/tiny-kto"]
    assert repository.head in done.stdout
    assert len(repository.commits) == 2, "one commit beside the one that creating makes"
    files = repository.commits[repository.head]
    assert files["model.safetensors"] == (artifacts["kto"] / "model" / "model.safetensors").read_bytes()
    card = card_of(repository)
    assert card.data.library_name == "transformers"
    score = json.loads((artifacts["evaluate/kto"] / "record.json").read_text())["metrics"]["word_problems"]
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == ("word_problems", "test", "accuracy")
    assert result.metric_value == score["accuracy"]
    assert "license" not in card.data.to_dict(), "no source states one"
    assert "| pretrain | continued pretraining |" in card.text
    assert re.search(r"- 1/5 each: base-\w+, checkpoint-10, checkpoint-20, checkpoint-30, checkpoint-40\n", card.text)
    (settings,) = re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert yaml.safe_load(settings)["kto"]["beta"] == 0.1
    assert "Question: What is 7 times 8?" in run_snippets(client, card)
    parameters = json.loads((artifacts["base/init"] / "record.json").read_text())["counters"]["parameters"]
    assert load(client, "model", "me/tiny-kto", repository.head).split()[0] == str(parameters)
    sent = [path for _, path, _ in hub.requests if path.startswith("/lfs-put/")]
    again = push(client, artifacts["kto"], "me/tiny-kto", "--results", artifacts["evaluate/kto"])
    assert again.returncode == 0, again.stderr
    assert sent
    assert sent == [path for _, path, _ in hub.requests if path.startswith("/lfs-put/")], "nothing is sent twice"


def rows_of(artifact: Path, step: str) -> dict[str, int]:
    """Return the rows of each split, as the artifact itself has them."""
    if step == "mix":
        splits = json.loads((artifact / "mixture.json").read_text())["splits"]
        return {name: counts["rows"] for name, counts in splits.items()}
    if step == "prefer":
        return {name: len(split) for name, split in load_from_disk(artifact / "preference").items()}
    return {"train": len((artifact / "train.jsonl").read_text().splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("step", ["mix", "prefer", "rollout"])
def test_a_dataset_goes_up_and_loads(hub, client, tiny_run: Run, step):
    artifact = tiny_run.artifacts()[step]
    done = push(client, artifact, f"me/{step}")
    assert done.returncode == 0, done.stderr
    wanted = rows_of(artifact, step)
    repository = hub.repositories["dataset", f"me/{step}"]
    assert load(client, "dataset", f"me/{step}", repository.head) == str(wanted)


def test_an_evaluation_goes_up_file_by_file(hub, client, tiny_run: Run):
    artifact = tiny_run.artifacts()["evaluate/soup"]
    done = push(client, artifact, "me/scores", "--private")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["dataset", "me/scores"]
    files = repository.commits[repository.head]
    for path in artifact.rglob("*"):
        if path.is_file():
            assert files[path.relative_to(artifact).as_posix()] == path.read_bytes()
    assert repository.private
    assert "num_rows: 30" in run_snippets(client, card_of(repository))


LICENCE = {"license": "other", "license_name": "a-licence", "license_link": "LICENSE", "language": ["en", "zh"]}


@pytest.mark.slow
def test_licence_and_languages_are_those_of_the_sources(hub, client, tiny_run: Run, tmp_path):
    """Of a base model and of data; a source that states no licence leaves the card without one."""
    model = tiny_run.artifacts()["pretrain"] / "model"
    weights = {path.name: path.read_bytes() for path in model.iterdir()}
    header = f"---\n{yaml.safe_dump(LICENCE)}---\n"
    hub.add("model", "org/base", {**weights, "README.md": header.encode()})
    rows = b'{"prompt": "a", "completion": "b", "label": true}\n{"prompt": "a", "completion": "c", "label": false}\n'
    hub.add("dataset", "org/open", {"train.jsonl": rows, "README.md": b"---\nlicense: mit\nlanguage: fr\n---\n"})
    hub.add("dataset", "org/silent", {"train.jsonl": rows})
    made = client.ladle("fetch", "org/base", "--out", tmp_path / "base", "--root", tmp_path)
    assert made.returncode == 0, made.stderr
    assert push(client, tmp_path / "base", "me/base").returncode == 0
    card = card_of(hub.repositories["model", "me/base"]).data.to_dict()
    assert {key: card[key] for key in LICENCE} == LICENCE
    assert card["base_model"] == ["org/base"]
    for name, data, licence in (("one", "[org/open]", ["mit"]), ("two", "[org/open, org/silent]", None)):
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"name: {name}\nbase: {{model: org/base}}\nkto: {{data: {data}}}\n")
        made = client.ladle("prefer", "--config", config, "--out", tmp_path / name, "--root", tmp_path)
        assert made.returncode == 0, made.stderr
        assert push(client, tmp_path / name, f"me/{name}").returncode == 0
        card = card_of(hub.repositories["dataset", f"me/{name}"]).data.to_dict()
        assert (card.get("license"), card["language"]) == (licence, ["fr"])
        assert card["source_datasets"] == re.findall(r"org/\w+", data)


def test_without_the_right_to_write_nothing_is_made(hub, client, tiny_run: Run):
    done = push(client, tiny_run.artifacts()["soup"], "me/soup", token="")
    assert done.returncode == 2
    assert "may not write to model me/soup" in done.stderr
    assert "hf auth login" in done.stderr
    assert not hub.repositories


def test_a_changed_artifact_and_a_wrong_name_are_refused(client, tiny_run: Run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_run.artifacts()["rollout"], copy)
    (copy / "train.jsonl").write_text("{}\n")
    assert push(client, copy, "me/x").returncode == 1
    assert push(client, copy, "no-organization").returncode == 2
    assert push(client, tmp_path, "me/x").returncode == 2
