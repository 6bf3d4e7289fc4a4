"""The KTO recipes against a Hub: each plans as it stands, and the reports' own run in tiny amounts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import make_model, make_tokenizer

BENCHMARKS = ("aime24", "amc23", "gsm8k", "math500", "minerva_math", "olympiadbench")
OPENSEEK, QWEN = "BAAI/OpenSeek-Small-v1-SFT", "trl-lib/qwen1.5-1.8b-sft"
STEPS = {
    "kto-mix": {"prefer", "kto/reference-1", "kto"},
    "kto-mix-qlora": {"prefer", "kto/reference-1", "kto"},
    "openseek/kto": {"prefer", "kto/reference-1", "kto"},
    "openseek/kto-rollouts": {"rollout", "rollout/round-3", "kto/training-3", "kto/gate-2", "kto"},
    "kto-rounds": {"rollout", "rollout/round-3", "kto/training-3", "kto/gate-2", "kto"},
}


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def turns(number: int) -> tuple[dict[str, str], dict[str, str]]:
    return {"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number}."}


@pytest.fixture
def filled(hub, tmp_path):
    """A Hub with everything that the recipes name, tiny."""
    for name, shape in ((OPENSEEK, "deepseek_v3"), (QWEN, "qwen3")):
        source = tmp_path / shape
        make_model(shape, len(make_tokenizer())).save_pretrained(source)
        make_tokenizer().save_pretrained(source)
        hub.add("model", name, {path.name: path.read_bytes() for path in source.iterdir()})
    labelled = [
        {"prompt": [turns(number)[0]], "completion": [turns(number)[1]], "label": number % 3 > 0}
        for number in range(24)
    ]
    hub.add("dataset", "trl-lib/kto-mix-14k", {"train.jsonl": jsonl(labelled), "test.jsonl": jsonl(labelled[:6])})
    hub.add("dataset", "AI-MO/NuminaMath-CoT", {"train.jsonl": jsonl([{"messages": turns(n)} for n in range(24)])})
    hub.add("dataset", "agentica-org/DeepScaleR-Preview-Dataset", {"train.jsonl": b'{"problem": "1", "answer": "1"}\n'})
    return hub


@pytest.mark.parametrize("recipe", STEPS)
def test_a_recipe_plans_as_it_stands(filled, client, recipe, repository, tmp_path):
    source = tmp_path / "deepseek_v3"
    overrides = [f"base.model={source}"] if recipe == "kto-rounds" else []
    # benchmarks are another capability's: theirs are pinned by its own tests
    overrides += ["evaluate=null", "report=null"] if recipe.startswith("openseek") else []
    done = client.ladle("plan", repository / "recipes" / f"{recipe}.yaml", *overrides, "--root", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    planned = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert STEPS[recipe] <= planned, done.stdout


TINY = ["kto.trainer.max_steps=3", "kto.trainer.per_device_train_batch_size=2", "kto.trainer.bf16=false"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "overrides", "labels"),
    [
        ("kto-mix", ["kto.trainer.eval_steps=2"], (16, 8)),
        ("openseek/kto", ["kto.distributed=ddp", "kto.processes=1", "kto.dtype=float32"], (24, 0)),
    ],
)
def test_a_recipe_runs_in_tiny_amounts(filled, client, recipe, overrides, labels, repository, tmp_path):
    path = repository / "recipes" / f"{recipe}.yaml"
    root = tmp_path / "runs"
    done = client.ladle("run", path, "--only", "kto", "--root", root, *TINY, *overrides, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(file.read_text()) for file in root.glob("*/kto/kto-*/record.json"))
    counters = record["counters"]
    assert (counters["steps"], counters["desirable"], counters["undesirable"]) == (3, *labels)
    assert next(Path(root).glob("*/kto/kto-*/model/model.safetensors")).is_file()
