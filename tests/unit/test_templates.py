"""`ladle init`: what it writes passes the doctor once the files that it asks for are there, and runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ladle
from ladle.errors import UserError
from ladle.recipe import load_recipe
from ladle.templates import RECIPES, TEMPLATES, write_template
from tests.tiny_models import make_model, make_tokenizer

CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# On this machine, without the Hub: a tiny model in place of the Hub's, and benchmarks in a folder.
HERE = ["base.model=my-model", "evaluate.data=benchmarks"]
TRAINER = ["max_steps=2", "per_device_train_batch_size=2", "gradient_accumulation_steps=1", "logging_steps=1"]
SHORT = ["evaluate.sampling.max_new_tokens=4", "evaluate.limit=1"]


def tiny(*sections: str) -> list[str]:
    """Return overrides of trainings in two steps of two short rows."""
    return [f"{section}.trainer.{setting}" for section in sections for setting in TRAINER]


# Of each template that asks for paths: what doctor objects to without them, and overrides that make it tiny.
ASKING: dict[str, tuple[set[str], list[str]]] = {
    "continue-pretraining": (
        {"mix.sources.documents"},
        [*HERE, *SHORT, *tiny("pretrain"), "mix.budget.tokens=4096", "mix.sequence_length=128",
         "pretrain.trainer.save_steps=1", "pretrain.trainer.eval_steps=1"],
    ),
    "thumbs-to-kto": ({"kto.data"}, [*HERE, *SHORT, *tiny("kto"), "kto.max_length=256"]),
    "sft-then-kto": (
        {"sft.data", "kto.data"},
        [*HERE, *SHORT, *tiny("sft", "kto"), "sft.max_length=256", "kto.max_length=256"],
    ),
    "evaluate-my-model": (
        {"evaluate.models"},
        [*SHORT, "evaluate.data=benchmarks", "evaluate.models.before.model=base"],
    ),
    "my-benchmark": ({"evaluate.models", "evaluate.benchmarks.mine"}, [*SHORT, "evaluate.sampling.samples=2"]),
}  # fmt: skip


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def asked_for(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the templates ask for."""
    folder = tmp_path_factory.mktemp("asked-for")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    for name in ("my-model", "base"):
        make_model("qwen3").save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    problems = [(f"{a} plus {b}?", f"{a + b}") for a in range(12) for b in range(12)]
    write_rows(folder / "documents" / "one.jsonl", [{"text": f"{q} {a}. " * 9} for q, a in problems])
    ratings = [f"{q},{a},{'up' if n % 2 else 'down'}" for n, (q, a) in enumerate(problems)]
    (folder / "ratings.csv").write_text("\n".join(["prompt,completion,rating", *ratings]) + "\n")
    chats = [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in problems]
    write_rows(folder / "conversations.jsonl", chats)
    pairs = [
        {"prompt": [turn("user", q)], "chosen": [turn("assistant", a)], "rejected": [turn("assistant", "no")]}
        for q, a in problems
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "my-benchmark.jsonl", [{"question": q, "answer": a} for q, a in problems])
    write_rows(folder / "benchmarks" / "gsm8k" / "test.jsonl", [{"question": "1+1?", "answer": "So #### 2"}])
    math500 = {"problem": "1+1?", "answer": "2", "solution": "2", "unique_id": "a", "subject": "b", "level": 1}
    write_rows(folder / "benchmarks" / "math500" / "test.jsonl", [math500])
    return folder


def errors(path: Path, overrides: list[str]) -> dict[str, str]:
    return {one.subject: one.message for one in ladle.doctor(path, overrides) if one.level == "error"}


@pytest.mark.parametrize("name", ASKING)
def test_the_doctor_objects_to_the_paths_it_asks_for_and_to_nothing_else(asked_for, tmp_path, monkeypatch, name):
    asked, overrides = ASKING[name]
    monkeypatch.chdir(tmp_path)
    path = write_template(name)
    for common in ("base", "benchmarks", *(["my-model"] if "base.model=my-model" in overrides else [])):
        shutil.copytree(asked_for / common, tmp_path / common)
    assert set(errors(path, overrides)) == asked
    shutil.copytree(asked_for, tmp_path, dirs_exist_ok=True)
    assert errors(path, overrides) == {}
    planned = ladle.open(path, overrides).plan()
    assert planned[-1].step.name == "report"


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKING)
def test_it_runs(asked_for, tmp_path, monkeypatch, name):
    monkeypatch.chdir(shutil.copytree(asked_for, tmp_path / "work"))
    run = ladle.open(write_template(name), ASKING[name][1])
    run.build()
    assert run.report.is_file()
    assert run.scores


def test_the_others_are_recipes_and_a_profile_themselves(tmp_path, repository):
    for name in ("quickstart", "one-gpu-7b-qlora"):
        written = load_recipe(write_template(name, tmp_path / f"{name}.yaml"))
        original = load_recipe(repository / "recipes" / TEMPLATES[name])
        assert written.model_dump(exclude={"source"}) == original.model_dump(exclude={"source"})
    profile = write_template("slurm", tmp_path / "profile.yaml")
    launched = ladle.launch_on_slurm(repository / "recipes" / "tiny.yaml", [], profile, True, tmp_path / "runs")
    scripts = {job.name: script for job, script in launched.scripts}
    assert "#SBATCH --partition=gpu" in scripts["mix"]
    assert "#SBATCH --cpus-per-task=32" in scripts["mix"]
    assert "#SBATCH --cpus-per-task=8" in scripts["pretrain"]


def test_comments_name_the_written_file_and_the_shipped_schema(tmp_path):
    for name in TEMPLATES:
        path = write_template(name, tmp_path / "new" / f"{name}.yaml")
        text = path.read_text(encoding="utf-8")
        assert "recipes/templates" not in text
        schema = (RECIPES / "schema.json").as_uri()
        assert name == "slurm" or text.startswith(f"# yaml-language-server: $schema={schema}\n")
        assert f"ladle {'launch RECIPE --slurm --profile' if name == 'slurm' else 'run'} {path}" in text


def test_an_unknown_template_and_a_file_that_exists_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no template 'kto'.*quickstart, continue-pretraining, thumbs-to-kto"):
        write_template("kto", tmp_path / "kto.yaml")
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match="mine.yaml exists: name another file with --out"):
        write_template("slurm", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "name: mine\n"
