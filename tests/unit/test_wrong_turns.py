"""Wrong turns of a first day, by what a new user types: each ends in one message with the value and a fix, exit code 2,
no traceback, and nothing that looks finished. Faults of recipes and overrides are in test_wrong_input.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

import ladle
from ladle.cli import main
from ladle.errors import UserError
from tests.tiny_models import make_model, make_tokenizer

RECIPE = """\
name: t
datasets:
  problems: {kind: word_problems, train: 40, worksheets: 2, prompts: 4, validation: 4, test: 4}
base: {model: model}
mix:
  sources:
    - {name: web, dataset: data/text.jsonl, ratio: 1.0, max_epochs: 1000}
  budget: {sequences: 8}
  sequence_length: 64
pretrain:
  trainer: {max_steps: 2, save_steps: 1, per_device_train_batch_size: 2}
"""
FILES: dict[str, str | bytes] = {
    "recipe.yaml": RECIPE,
    "quickstart.yaml": "name: mine\n",
    "data/text.jsonl": '{"text": "a word or two"}\n' * 3,
    "data/empty.jsonl": "",
    "data/broken.jsonl": '{"text": "a"}\n{"text": \n',
    "data/column.jsonl": '{"body": "a"}\n',
    "data/binary.jsonl": bytes(range(256)),
    "data/fake.parquet": "no parquet",
    "data/notes.pdf": b"%PDF-1.4",
    "data/table.csv": "prompt,answer\na,b\n",
    "bench/one.jsonl": '{"question": "1 + 1?", "answer": "2"}\n',
    "bench/fields.jsonl": '{"q": "1 + 1?"}\n',
    "pairs.jsonl": '{"gold": "1", "answer": "1"}\n',
    "semicolons.csv": "prompt;completion;rating\na;b;up\n",
    "bench/cell.csv": "question,answer\n,2\n",
    "model.gguf": b"GGUF",
    "no-answer.jsonl": '{"gold": "1"}\n',
    "taken/file": "x",
    "empty/.keep": "",
    "gsm8k/gsm8k/test_cot_-1_seed0_t0.0_s0_e-1_result.jsonl": '{"idx": 0, "question": "q", "score": [true]}\n',
    "math/math500/test_cot_-1_seed0_t0.0_s0_e-1_result.jsonl": '{"idx": 0, "question": "q", "score": [true]}\n',
}
MIX = ("mix", "recipe.yaml", "--out", "new")
WEB = "mix.sources.web.dataset=data/"
PRETRAIN = ("pretrain", "recipe.yaml", "--out", "new")
TRAINER = "pretrain.trainer."
RATED = "kto.data=[{format: thumbs, prompt: '{prompt}', completion: '{completion}', dataset: DATASET}]"
THUMBS = ("prefer", "recipe.yaml", RATED)
THUMBS_OF = "kto.data.0.dataset="
SCORE = ("evaluate", "model", "--benchmarks")
ONE = ("--benchmarks", "bench/one.jsonl", "--out", "new")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a recipe, data of all kinds, and models that lack something."""
    folder = tmp_path_factory.mktemp("first-day")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    make_model("qwen3").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    for name in ("untokenized", "cut", "bad-config", "unknown", "weightless"):
        shutil.copytree(folder / "model", folder / name)
    for path in (folder / "untokenized").glob("*token*"):
        path.unlink()
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "bad-config" / "config.json").write_text("{nope")
    config = json.loads((folder / "unknown" / "config.json").read_text()) | {"model_type": "gpt9"}
    (folder / "unknown" / "config.json").write_text(json.dumps(config))
    (folder / "weightless" / "model.safetensors").unlink()
    make_model("llama").save_pretrained(folder / "llama")
    make_tokenizer().save_pretrained(folder / "llama")
    return folder


TURNS = [
    # the recipe
    (("run", "quick"), "there is no recipe at quick", "name an existing one (here: quickstart.yaml, recipe.yaml)"),
    (("run", "recipe.yaml:pretrain"), "there is no recipe at recipe.yaml:pretrain", "recipe.yaml"),
    (("run", "empty"), "empty is a folder, not a recipe", "write one with `ladle init`"),
    (("plan", "recipe.yaml", TRAINER + "max_steps", "3"), "max_steps' is not an override", "key=value"),
    (("run", "recipe.yaml", "--only", "pretrained"), "the recipe has no step 'pretrained'", "base, mix, pretrain"),
    (("report", "recipe.yaml"), "the recipe has no step 'report'", "name one of"),
    (("kto", "recipe.yaml"), "the recipe has no step 'kto'", "name one of"),
    (("verify", "recipe.yaml"), "recipe.yaml is not an artifact", "RECIPE:STEP"),
    (("peek", "model"), "model is not an artifact", "RECIPE:STEP"),
    (("init", "quickstart"), "quickstart.yaml exists", "--out"),
    (("init", "thumbs-to-kto", "--out", "data/text.jsonl/x.yaml"), "file exists (data/text.jsonl)", "another path"),
    # models
    (("evaluate", "recipe.yaml", *ONE), "recipe.yaml holds no model", "or a step: RECIPE:STEP"),
    (("evaluate", "model/model.safetensors", *ONE), "model.safetensors holds no model", "save_pretrained"),
    (("evaluate", "gpt2", *ONE), "there is no model at gpt2", "a Hub id org/name"),
    (("evaluate", "org/none", *ONE), "model org/none at main is not in the cache", "hf download org/none"),
    (("evaluate", "untokenized", *ONE), "there is no tokenizer in untokenized", "tokenizer.json"),
    (("evaluate", "cut", *ONE), "cannot load the model in cut: Error while deserializing", "and the weights"),
    (("evaluate", "bad-config", *ONE), "cannot load the model in bad-config", "check config.json"),
    (("evaluate", "unknown", *ONE), "model type `gpt9`", "check config.json"),
    (("evaluate", "weightless", *ONE), "no file named model.safetensors", "and the weights"),
    (("generate", "nowhere", "hi"), "there is no model at nowhere", "name a folder"),
    (("generate", "model.gguf", "hi"), "model.gguf is a GGUF file", "ladle fetch model.gguf --out"),
    (("chat", "model.gguf"), "model.gguf is a GGUF file", "ladle fetch model.gguf --out"),
    (("soup", "model", "llama", "--out", "new"), "llama has a lm_head.weight of its own", "all tied, or all untied"),
    (("soup", "model", "data/text.jsonl", "--out", "new"), "data/text.jsonl is not a model", "save_pretrained"),
    (("soup", "model", "model", "method=ema", "ema_alpha=2"), "soup.ema_alpha: 2", "less than or equal to 1"),
    (("soup", "model", "model", "--out", "taken"), "taken exists and is not an artifact", "--out"),
    (("fetch", "--dataset", "org/none"), "dataset org/none at main is not in the cache", "hf download org/none"),
    (("fetch", "--init", "recipe.yaml"), "unknown key 'name'", "architecture, dtype, seed, tokenizer"),
    # benchmarks, answers and scores
    ((*SCORE, "bench/none.jsonl"), "there is no dataset at bench/none.jsonl", "'bench/one.jsonl'"),
    ((*SCORE, "gsm8k, gsm9k"), "'gsm9k'", "use one of aime24"),
    ((*SCORE, "gsm8k", "--data", "nowhere"), "nowhere/gsm8k/test.jsonl", "an existing path"),
    ((*SCORE, "bench/fields.jsonl"), "(looked for question; it has q)", "FIELD"),
    ((*SCORE, "bench/cell.csv"), "row 1 of bench/cell.csv has no question: question is empty", "fill it in"),
    ((*SCORE, "data/empty.jsonl"), "empty has no items in data/empty.jsonl", "name a file"),
    (("evaluate", "model", *ONE, "sampling.temperature=hot"), "evaluate.sampling.temperature: 'hot'", "a valid number"),
    (("compare", "gsm8k", "math"), "gsm8k", "math500"),
    (("rescore", "data"), "there are no result files at data", "name BENCHMARK/RUN_ID_result.jsonl"),
    (("grade", "no-answer.jsonl", "--out", "v.jsonl"), "line 1 of no-answer.jsonl has no 'answer'", "write a row as"),
    (("grade", "data/empty.jsonl", "--out", "v.jsonl"), "data/empty.jsonl holds no rows", "gold and answer"),
    (("grade", "pairs.jsonl", "--out", "bench/../pairs.jsonl"), "pairs.jsonl is the file to grade", "another file"),
    (("grade", "pairs.jsonl", "--out", "taken"), "taken is a folder", "name the file to write"),
    (("grade", "pairs.jsonl", "--out", "taken/file/v.jsonl"), "cannot make the folder taken/file", "--out"),
    (("push", "model", "org/name"), "model is not an artifact", "name a folder that a ladle stage made"),
    # data
    ((*MIX, WEB + "empty.jsonl"), "source web (split train) holds no documents", "check its `dataset`"),
    ((*MIX, WEB + "broken.jsonl"), "row 2 of data/broken.jsonl (bad_json)", "correct the data"),
    ((*MIX, WEB + "column.jsonl"), "data/column.jsonl has no column text (its columns: body)", "to a column it has"),
    ((*MIX, WEB + "binary.jsonl"), "data/binary.jsonl (bad_", "correct the data"),
    ((*MIX, WEB + "fake.parquet"), "data/fake.parquet cannot be read", "fetch the file again"),
    ((*MIX, WEB + "notes.pdf"), "data/notes.pdf has a format that cannot be read", "give files ending in .parquet"),
    ((*MIX, "mix.sources.web.dataset=empty"), "empty holds no files", "data in it"),
    ((*MIX, "mix.sources.web.max_epochs=1"), "12.2 epochs (max_epochs=1)", "raise its max_epochs"),
    (("prefer", "recipe.yaml", "kto.data=[data/table.csv]"), "table.csv has no column 'completion'", "set `format:`"),
    ((*THUMBS, THUMBS_OF + "data/table.csv"), "has no column 'completion'", "set `prompt`, `completion` and `rating`"),
    ((*THUMBS, THUMBS_OF + "semicolons.csv"), "(it has prompt;completion;rating)", "with commas"),
    ((*THUMBS, THUMBS_OF + "data/empty.jsonl"), "data/empty.jsonl (split train) holds no rows", "`dataset`"),
    # numbers
    ((*MIX, "mix.sequence_length=0"), "mix.sequence_length: 0", "greater than or equal to 2"),
    ((*MIX, "mix.budget.sequences=-3"), "mix.budget.sequences: -3", "greater than 0"),
    ((*MIX, "mix.sources.web.ratio=nan"), "mix.sources.0.ratio: 'nan'", "a finite number"),
    ((*PRETRAIN, "seed=-1"), "seed: -1", "greater than or equal to 0"),
    ((*PRETRAIN, TRAINER + "learning_rate=-1"), "trainer.learning_rate=-1 is too small", "write 0 or more"),
    ((*PRETRAIN, TRAINER + "per_device_train_batch_size=0"), "batch_size=0 is too small", "write 1 or more"),
    ((*PRETRAIN, TRAINER + "gradient_accumulation_steps=0"), "steps=0 is too small", "write 1 or more"),
    ((*PRETRAIN, TRAINER + "seed=-1"), "trainer.seed=-1 is too small", "write 0 or more"),
    ((*PRETRAIN, TRAINER + "lr_scheduler_type=cosin"), "cosin is not a valid SchedulerType", "did you mean 'cosine'?"),
    ((*PRETRAIN, TRAINER + "fp16=true"), "trainer.fp16 needs a GPU", "set bf16: true"),
    # places
    ((*MIX[:3], ""), "exists and is not an artifact", "name an empty folder with --out"),
    ((*MIX[:3], "data/text.jsonl"), "data/text.jsonl exists and is not an artifact", "--out"),
    (("run", "recipe.yaml", "--root", "data/text.jsonl"), "cannot make the folder data/text.jsonl", "--root"),
    (("run", "recipe.yaml", "--root", "/proc/none"), "cannot make the folder /proc/none", "--root"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "seen", "fix"), TURNS, ids=[" ".join(turn[0]) for turn in TURNS])
def test_a_wrong_turn_is_one_message(folder, monkeypatch, capfd, arguments, seen, fix):
    if any("fp16" in one for one in arguments) and ladle.api.num_gpus():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(folder)
    before = written(folder)
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    message = refused(capfd, ended.value.code)
    assert seen in message
    assert fix in message.split(seen, 1)[1]
    new = written(folder) - before
    assert not {path for path in new if not path.startswith("runs/") and ".partial/" not in path}


def refused(capfd: pytest.CaptureFixture[str], code: object) -> str:
    said = capfd.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert code == 2, said
    assert "Traceback" not in said.err
    assert errors == said.err.splitlines()[-1:], said.err
    return errors[0]


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def test_a_recipe_of_another_folder_names_the_data_that_is_not_here(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(folder / "recipe.yaml")])
    message = refused(capfd, ended.value.code)
    assert "there is no model at model" in message
    assert f"looked in {tmp_path}" in message


def test_a_run_of_what_another_run_builds_names_its_process(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    final = tmp_path / "new"
    holder = final.with_name(f".{final.name}.holder")
    holder.write_text(json.dumps({"host": "a-node", "pid": 7}))
    with FileLock(final.with_name(f".{final.name}.lock")), pytest.raises(SystemExit) as ended:
        main([*MIX[:2], "--out", str(final)])
    assert "new is being built by process 7 on a-node: wait for it" in refused(capfd, ended.value.code)


def test_without_slurm_launching_on_it_says_so(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["launch", "recipe.yaml", "--slurm", "--root", str(tmp_path / "runs")])
    assert "sbatch" in refused(capfd, ended.value.code)


def test_one_text_alone_is_one_and_not_its_letters(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(ladle.generate("model", "ab", max_new_tokens=1)) == 1
    assert ladle.open("recipe.yaml", "seed=7").recipe.seed == 7
    with pytest.raises(UserError, match="there is no dataset at bench/none.jsonl"):
        ladle.evaluate("model", Path("bench/none.jsonl"))
    with pytest.raises(UserError, match="there is no model at nowhere"):
        ladle.soup("nowhere", out="new")


def test_a_number_to_grade_is_to_be_written_as_text():
    with pytest.raises(UserError, match=r"5 \(int\) is not a text: write it as one: '5'"):
        ladle.grade("5", 5)  # type: ignore[reportArgumentType]


def test_a_common_suffix_does_not_make_names_close(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name, fix in (("nope.jsonl", "name an existing path"), ("pair.jsonl", "did you mean 'pairs.jsonl'")):
        with pytest.raises(UserError) as error:
            ladle.evaluate("model", name)
        assert error.value.fix.startswith(fix)


def test_a_wrong_keyword_of_sampling_is_one_message():
    with pytest.raises(UserError, match=r"unknown key 'max_tokens': did you mean 'max_new_tokens'\? \(in the call\)"):
        ladle.generate("model", ["a"], max_tokens=2)
