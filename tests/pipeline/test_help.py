"""The examples in `--help` and on the pages, run in a folder that has what they name; and how commands are called."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.conftest import Run, ladle
from tests.tiny_models import make_model, make_tokenizer

pytestmark = pytest.mark.xdist_group("pipeline")

STAND_INS = {
    "recipes/quickstart.yaml": "recipes/tiny.yaml",  # the same pipeline in seconds
    "runs/quickstart/mix/mix-0123456789ab": "mixture",
    "tokenizer=DIR": "tokenizer=my-model",
    "recipes/openseek/init.yaml": "init.yaml",
    "gsm8k,math500": "gsm8k",
}
ELSEWHERE = ("--rehearse", "recipes/openseek/pretrain.yaml")  # tests/pipeline/test_rehearse.py, tests/launch
OF_THEIR_OWN = ("cluster.md", "tutorial.md", "tutorial.zh.md")  # pages with tests of their own, as the README has


def commands() -> list[str]:
    from ladle.cli import app

    return [one.name or one.callback.__name__ for one in app.registered_commands if one.callback]


def examples(repository: Path) -> list[str]:
    from ladle.cli import app

    texts = [one.callback.__doc__ or "" for one in app.registered_commands if one.callback]
    files = sorted((repository / "docs").rglob("*.md"))
    pages = [path.read_text(encoding="utf-8") for path in files if path.name not in OF_THEIR_OWN]
    texts += [block for page in pages for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.lstrip().startswith("ladle ")]
    once = {tuple(shlex.split(line, comments=True)): line for line in lines}.values()  # pages repeat some of `--help`
    return [line for line in once if not any(word in line for word in ELSEWHERE)]


@pytest.fixture
def folder(repository: Path, tiny_run: Run, tmp_path: Path) -> Path:
    """A working folder with the recipes, a finished run of one, models, checkpoints, pairs and a benchmark."""
    work = tmp_path / "work"
    shutil.copytree(tiny_run.root, work / "runs")
    (work / "recipes").symlink_to(repository / "recipes")
    found = tiny_run.artifacts()
    for name, source in (("my-model", found["kto"] / "model"), ("base", found["base"] / "model")):
        shutil.copytree(source, work / name)
    for name, step in (("mixture", "mix"), ("scores-before", "evaluate/base"), ("scores-after", "evaluate/kto")):
        shutil.copytree(found[step], work / name)
    for number in (1000, 2000):
        shutil.copytree(found["pretrain"] / "model", work / "checkpoints" / f"checkpoint-{number}")
    (work / "pairs.jsonl").write_text('{"gold": "1/2", "answer": "0.5"}\n')
    (work / "benchmarks" / "gsm8k").mkdir(parents=True)
    (work / "benchmarks" / "gsm8k" / "test.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    architecture = {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    architecture |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    (work / "init.yaml").write_text(f"tokenizer: my-model\narchitecture: {json.dumps(architecture)}\n")
    return work


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_example_runs(repository, hub, client, folder, tmp_path):
    make_model("qwen3").save_pretrained(tmp_path / "hub-model")
    make_tokenizer().save_pretrained(tmp_path / "hub-model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "hub-model").iterdir()}
    hub.add("model", "BAAI/OpenSeek-Small-v1", files)
    hub.add("dataset", "AI-MO/NuminaMath-CoT", {"train.jsonl": b'{"text": "a"}\n' * 5})
    found = examples(repository)
    assert len(found) >= 44
    wrong = []
    for example in found:
        words = shlex.split(example, comments=True)
        for named, there in STAND_INS.items():
            words = [word.replace(named, there) for word in words]
        if words[1] == "fetch":  # `base` stays the model that the soups average
            words = ["fetched" if word == "base" else word for word in words]
        if "--out" in words:
            out = folder / words[words.index("--out") + 1]
            if out.is_dir() and words[1] != "verify":
                shutil.rmtree(out)
        environment = client.environment(HF_TOKEN="hf_good")
        command = [sys.executable, "-m", "ladle", *words[1:]]
        settings = {"capture_output": True, "text": True, "cwd": folder, "env": environment}
        done = subprocess.run(command, stdin=subprocess.DEVNULL, **settings)  # of which `chat` takes its messages
        # the doctor's second example plants a fault, and the records compared are of two trainings
        expected = (0, 1) if words[1] in ("doctor", "compare-records") else (0,)
        if done.returncode not in expected or "Traceback" in done.stderr:
            wrong.append(f"{example}\n{done.stdout}{done.stderr}")
    assert not wrong, "\n".join(wrong)


def test_help_and_version_have_their_short_forms():
    assert ladle("-h").stdout == ladle("--help").stdout
    assert ladle("--version").stdout.startswith("ladle ")
    assert ladle("soup", "-h").returncode == 0


def test_no_summary_in_the_list_of_commands_is_cut():
    text = ladle("--help").stdout
    for command in commands():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [command]]
        assert not line.rstrip().endswith("..."), line


@pytest.mark.parametrize("stage", ["mix", "pretrain", "rollout", "prefer", "kto", "soup"])
def test_a_stage_takes_a_recipe_with_absolute_keys_or_config_with_relative_ones(repository, stage):
    """Both forms reach the same wrong value, which shows where a key ends up without running the stage."""
    section = "kto" if stage == "prefer" else stage
    recipe = repository / "recipes/tiny.yaml"
    for arguments in ([recipe, f"{section}.nonsense=1"], ["--config", recipe, "nonsense=1"]):
        done = ladle(stage, *arguments)
        assert done.returncode == 2
        assert f"unknown key '{section}.nonsense'" in done.stderr


def test_a_step_of_a_recipe_is_an_artifact(tiny, tiny_run: Run):
    by_step = ladle("show", f"{tiny}:evaluate/kto", "--json", root=tiny_run.root)
    by_path = ladle("show", tiny_run.artifacts()["evaluate/kto"], "--json")
    assert by_step.returncode == 0, by_step.stderr
    assert by_step.stdout == by_path.stdout
    wrong = ladle("verify", f"{tiny}:koto", root=tiny_run.root)
    assert wrong.returncode == 2
    assert "the recipe has no step 'koto'" in wrong.stderr


def test_a_folder_without_a_model_is_refused_with_the_one_inside(tiny_run: Run):
    done = ladle("evaluate", tiny_run.root / "tiny" / "kto", "--benchmarks", "gsm8k", root=tiny_run.root)
    assert done.returncode == 2
    assert "holds no model" in done.stderr
    assert str(tiny_run.artifacts()["kto"]) in done.stderr
