"""The whole pipeline at a small size: it ends, is cached, its plan says what changed, and what it wrote can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk

from ladle.artifacts.record import read_record
from ladle.models.load import load_model
from tests.pipeline.conftest import Run, ladle

MODELS = ("base", "base-few-shot", "pretrained", "soup", "sft", "kto")
STEPS = {
    *("datasets/problems", "base/init", "base/mix", "base", "mix", "pretrain", "soup", "sft/prefer", "sft/data", "sft"),
    *("rollout", "prefer", "kto"),
    *(f"evaluate/{name}" for name in MODELS),
    "report",
}
pytestmark = pytest.mark.xdist_group("pipeline")


def states(tiny: Path, run: Run, *overrides: str) -> dict[str, dict]:
    done = ladle("plan", tiny, *overrides, "--json", root=run.root)
    assert done.returncode == 0, done.stderr
    return {row["step"]: row for row in json.loads(done.stdout)}


def test_every_stage_leaves_an_artifact_and_nothing_else(tiny_run):
    artifacts = tiny_run.artifacts()
    assert set(artifacts) >= STEPS
    endings = (".partial", ".lock", ".holder", ".progress", ".tmp")
    left = [path for path in tiny_run.root.rglob("*") if path.name.endswith(endings)]
    assert left == []


def test_the_results_and_the_reports_path_are_printed(tiny_run):
    for name in MODELS:
        assert f"\n{name} " in tiny_run.stdout
    assert "95 % interval" in tiny_run.stdout
    report = Path(tiny_run.stdout.rsplit("report: ", 1)[1].splitlines()[0])
    assert "<h1>Ladle tiny</h1>" in report.read_text()


def test_a_second_run_builds_nothing(tiny, tiny_run):
    before = {name: (path / "record.json").stat().st_mtime_ns for name, path in tiny_run.artifacts().items()}
    done = ladle("run", tiny, root=tiny_run.root)
    assert done.returncode == 0
    assert done.stdout == tiny_run.stdout
    assert before == {name: (path / "record.json").stat().st_mtime_ns for name, path in tiny_run.artifacts().items()}


def test_a_changed_learning_rate_rebuilds_exactly_what_is_downstream(tiny, tiny_run):
    plan = states(tiny, tiny_run, "pretrain.trainer.learning_rate=1e-3")
    cached = {name for name, row in plan.items() if row["state"] == "cached"}
    assert cached >= {"datasets/problems", "mix", "evaluate/base", "evaluate/base-few-shot"}
    assert plan["pretrain"]["reasons"] == ["pretrain.trainer.learning_rate: 0.004 → 0.001"]
    changed = {name for name, row in plan.items() if row["state"] == "changed"}
    assert changed == {
        "pretrain",
        "soup",
        "sft/data",
        "sft",
        "rollout",
        "prefer",
        "kto/reference-1",
        "kto",
        "evaluate/pretrained",
        "evaluate/soup",
        "evaluate/sft",
        "evaluate/kto",
        "report",
    }
    assert plan["soup"]["reasons"] in (["downstream of pretrain"], ["downstream of base, pretrain"])


def test_another_beta_needs_no_new_reference_pass(tiny, tiny_run):
    plan = states(tiny, tiny_run, "kto.beta=0.2", "kto.trainer.learning_rate=1e-5")
    assert plan["kto/reference-1"]["state"] == "cached"
    assert plan["kto"]["state"] == "changed"


def test_settings_of_the_run_alone_change_nothing(tiny, tiny_run):
    plan = states(tiny, tiny_run, "pretrain.trainer.logging_steps=1", "mix.workers=2", "evaluate.sampling.batch_size=3")
    assert {row["state"] for row in plan.values()} == {"cached"}


def test_verify_walks_from_the_report_to_the_roots(tiny_run):
    artifacts = tiny_run.artifacts()
    done = ladle("verify", artifacts["report"])
    assert done.returncode == 0, done.stdout
    weights = artifacts["pretrain"] / "model" / "model.safetensors"
    original = weights.read_bytes()
    try:
        weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        done = ladle("verify", artifacts["report"])
    finally:
        weights.write_bytes(original)
    assert done.returncode == 1
    assert f"changed: {weights}" in done.stdout


def test_every_model_loads_with_nothing_missing(tiny_run):
    artifacts = tiny_run.artifacts()
    for name in ("base", "pretrain", "soup", "sft", "kto"):
        model = load_model(artifacts[name])
        config = json.loads(next(artifacts[name].rglob("config.json")).read_text())
        assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
        assert model.num_parameters() > 0


def test_the_soup_is_the_mean_of_its_members(tiny_run):
    artifacts = tiny_run.artifacts()
    checkpoints = sorted(artifacts["pretrain"].glob("checkpoints/checkpoint-*"))
    assert len(checkpoints) == 4
    members = [load_model(path).state_dict() for path in [artifacts["base"], *checkpoints]]
    for name, tensor in load_model(artifacts["soup"]).state_dict().items():
        zero = torch.zeros((), dtype=torch.float64)
        mean = sum((member[name].double() for member in members), zero) / len(members)
        assert (tensor == mean.to(tensor.dtype)).all(), name


def test_preference_data_is_trls_unpaired_form(tiny_run):
    dataset = load_from_disk(tiny_run.artifacts()["prefer"] / "preference")
    assert list(dataset) == ["train"]
    assert dataset["train"].column_names == ["prompt", "completion", "label", "prompt_ids", "completion_ids"]


def test_tokens_in_equal_tokens_out_plus_counted_drops(tiny_run):
    counters = read_record(tiny_run.artifacts()["mix"])["counters"]
    dropped = sum(counters[name] for name in ("tokens_unused", "tokens_truncated", "tokens_contaminated"))
    assert counters["tokens_in"] + counters["tokens_repeated"] == counters["tokens_out"] + dropped
    assert counters["tokens_out"] > 0


def test_evaluation_leaves_the_reports_layout(tiny_run):
    folder = tiny_run.artifacts()["evaluate/kto"]
    final = json.loads((folder / "final_result.json").read_text())
    assert final["dataset_acc"].keys() == {"word_problems"}
    rows = [json.loads(line) for line in next(folder.glob("word_problems/*_result.jsonl")).read_text().splitlines()]
    assert [row["idx"] for row in rows] == list(range(30))
    assert {"question", "gt_cot", "gt", "code", "pred", "report", "score"} <= rows[0].keys()


def test_one_stage_alone_lands_in_the_folder_asked_for(tiny, tiny_run, tmp_path):
    done = ladle("mix", "--config", tiny, "--out", tmp_path / "mixture", "seed=5", root=tiny_run.root)
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "mixture")["config"]["seed"] == 5
    shown = json.loads(ladle("show", tmp_path / "mixture", "--json").stdout)
    assert shown["digest"] != read_record(tiny_run.artifacts()["mix"])["digest"]
