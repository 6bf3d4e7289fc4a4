"""The command line from outside: start-up cost, exit codes, one clear message for wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ladle import display
from ladle.artifacts.plan import PlannedStep, State
from tests.unit.artifacts import toy

HEAVY = ("torch", "transformers", "datasets", "numpy", "pyarrow", "vllm")


def ladle(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ladle", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "recipes/quickstart.yaml"], ["status", "recipes/tiny.yaml"]]
)
def test_light_commands_import_nothing_heavy(arguments, repository, tmp_path):
    script = f"""
import sys
from ladle.cli import main
try:
    main({[*arguments, *([] if arguments == ["--help"] else ["--root", str(tmp_path)])]!r})
finally:
    sys.stderr.write("IMPORTED " + " ".join(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert done.stderr.rsplit("IMPORTED ", 1)[1] == ""


PROBLEMS = "{kind: word_problems, train: 40, worksheets: 2, prompts: 4, validation: 4, test: 4}"
LLAMA = "{model_type: llama, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
TOKENIZER = "{dataset: problems, split: worked, vocab_size: 300}"


def mix(source: str, *keys: str) -> str:
    """Return a `mix:` section of eight sequences from one source."""
    return "\n  ".join(["mix:", "sources:", f"  - {source}", "budget: {sequences: 8}", *keys])


def write_recipe(folder: Path, **changes: str) -> Path:
    sections = {
        "name": "name: t",
        "datasets": f"datasets:\n  problems: {PROBLEMS}",
        "base": f"base:\n  init:\n    architecture: {LLAMA}\n    tokenizer: {TOKENIZER}",
        "mix": mix(
            "{name: worked, dataset: problems, split: worked, ratio: 1.0, max_epochs: 100}", "sequence_length: 64"
        ),
        "pretrain": "pretrain:\n  trainer: {max_steps: 2, per_device_train_batch_size: 2, save_steps: 1}",
        "soup": "soup: {members: [checkpoints]}",
    } | changes
    path = folder / "recipe.yaml"
    path.write_text("\n".join(sections.values()) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": mix("{name: a, dataset: problems, split: worked, text: txt, ratio: 1}")}, "txt"),
        ({"mix": mix("{name: a, dataset: empty.jsonl, ratio: 1}")}, "holds no documents"),
    ],
)
def test_input_that_turns_out_wrong_ends_with_one_message_and_no_artifact(tmp_path, changes, message, monkeypatch):
    (tmp_path / "empty.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    done = ladle("run", write_recipe(tmp_path, **changes), "--root", tmp_path / "runs")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/t/mix/*/record.json"))


def test_a_root_that_cannot_be_made_is_named(tmp_path, repository):
    (tmp_path / "file").write_text("")
    done = ladle("run", repository / "recipes/tiny.yaml", "--root", tmp_path / "file" / "runs")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "--root" in done.stderr


def test_a_fresh_models_file_takes_overrides_like_any_other(tmp_path, repository):
    done = ladle("fetch", "--init", repository / "recipes" / "openseek" / "init.yaml", f"tokenizer={tmp_path / 'none'}")
    assert done.returncode == 2
    assert f"there is no model at {tmp_path / 'none'}" in done.stderr


def test_plan_as_json_lists_steps_in_build_order(tmp_path, repository):
    done = ladle("plan", repository / "recipes/tiny.yaml", "--json", "--root", tmp_path)
    steps = [row["step"] for row in json.loads(done.stdout)]
    assert (
        steps.index("mix") < steps.index("pretrain") < steps.index("soup") < steps.index("kto") < steps.index("report")
    )
    assert {row["state"] for row in json.loads(done.stdout)} == {"new"}


def test_brackets_are_printed_as_they_are(capsys):
    (step,) = toy.chain("a")
    reason = "evaluate.benchmarks: [gsm8k] → [math500], :smile:"
    display.print_plan([PlannedStep(step, State.CHANGED, (reason,), Path("runs/s0"))], as_json=False)
    assert reason in capsys.readouterr().out
