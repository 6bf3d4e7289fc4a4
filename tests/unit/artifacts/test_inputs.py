"""What a name stands for, and what a record says was read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ladle.artifacts.build import Workspace, build
from ladle.artifacts.inputs import InputFinder
from ladle.artifacts.record import read_record
from ladle.data.config import MixConfig
from ladle.errors import UserError
from ladle.hub import HubUnreachable
from ladle.stages.mix import STAGE
from tests.unit.artifacts.toy import Step
from tests.unit.data.samples import save_tokenizer


def no_network(kind: str, repo_id: str, revision: str | None) -> str:
    raise HubUnreachable(f"{kind} {repo_id} is not in the cache", "fetch it once with a network")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("data/trian.jsonl", r"there is no dataset at data/trian.jsonl \(k\): did you mean 'data/train.jsonl'"),
        ("other/train.jsonl.gz", r"there is no dataset at other/train.jsonl.gz \(k\): name an existing path"),
        ("data/rows", r"there is no dataset at data/rows \(k\): name an existing path"),
        ("org/name", "dataset org/name is not in the cache"),
    ],
)
def test_a_mistyped_path_is_not_taken_for_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    with pytest.raises(UserError, match=message):
        InputFinder(tmp_path, no_network).find("dataset", reference, "k")


def test_files_of_this_machine_have_no_revision(tmp_path: Path):
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(UserError, match=r"k is at .*rows.jsonl on this machine and has a revision \(v1\)"):
        InputFinder(tmp_path, no_network).find("dataset", str(tmp_path / "rows.jsonl"), "k", "v1")


def test_a_record_names_only_the_files_that_were_read(tmp_path: Path):
    save_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "data").mkdir()
    for name in ("train.jsonl", "test.jsonl", "README.md"):
        (tmp_path / "data" / name).write_text(json.dumps({"text": name}) + "\n")
    finder = InputFinder(tmp_path)
    source = {"name": "a", "dataset": "data", "ratio": 1.0}
    config = MixConfig.model_validate({"sources": [source], "budget": {"tokens": 4}, "sequence_length": 4})
    inputs = {
        "tokenizer": (finder.local((tmp_path / "tokenizer",)),),
        "source:a": (finder.local((tmp_path / "data",)),),
    }
    record = read_record(build(Step("mix", STAGE, config, inputs), Workspace(tmp_path / "runs")))
    read = {role: {Path(file["path"]).name for item in items for file in item["files"]}
            for role, items in record["inputs"].items()}  # fmt: skip
    assert read["source:a"] == {"train.jsonl"}
    assert "tokenizer.json" in read["tokenizer"]
