"""Wrong input of every kind through the command line: exit code 2, one message with the value and a fix, and nothing
written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ladle.cli import main

RECIPE = """\
name: t
datasets:
  problems: {kind: word_problems, train: 40, worksheets: 2, prompts: 4, validation: 4, test: 4}
base: {model: model}
mix:
  sources:
    - {name: web, dataset: data/text.jsonl, ratio: 1.0}
  budget: {sequences: 8}
  sequence_length: 64
pretrain:
  trainer: {max_steps: 2, save_steps: 1}
soup: {members: [checkpoints]}
report: {}
"""
PLAN = ("plan", "recipe.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe, documents, a model's folder, and a folder of one artifact."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "done" / "mix" / "mix-0").mkdir(parents=True)
    (tmp_path / "done" / "mix" / "mix-0" / "record.json").write_text(json.dumps({"name": "mix"}))
    (tmp_path / "profile.yaml").write_text("partitions: gpu\n")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "twice.yaml").write_text(RECIPE + "name: again\n")
    (tmp_path / "broken.yaml").write_text("name: t\nmix: {sources: [\n")
    (tmp_path / "tab.yaml").write_text("name: t\nmix:\n\tbudget: 1\n")
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    (tmp_path / "loop.yaml").write_text("name: &a [*a]\n")
    (tmp_path / "utf16.yaml").write_bytes("name: t\nmixx: {}\n".encode("utf-16"))
    (tmp_path / "mark.yaml").write_bytes(b"\xef\xbb\xbfname: t\nmixx: {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "seen", "fix"),
    [
        # the recipe's file
        (("plan", "recipe.yml"), "there is no recipe at recipe.yml", "recipe.yaml"),
        (("plan", "data"), "data is a folder, not a recipe", "name an existing YAML file"),
        (("plan", "data/text.jsonl"), "unknown key 'text'", "(data/text.jsonl:1)"),
        (("plan", "list.yaml"), "list.yaml holds no keys", "`key: value`"),
        (("plan", "empty.yaml"), "empty.yaml holds no keys", "`key: value`"),
        (("plan", "twice.yaml"), "key 'name' is given twice", "keep one of them (twice.yaml:14)"),
        (("plan", "broken.yaml"), "broken.yaml is not valid YAML", "line 3"),
        (("plan", "tab.yaml"), "tab.yaml is not valid YAML", "line 3"),
        (("plan", "latin.yaml"), "latin.yaml is not valid YAML", "position 9"),
        (("plan", "loop.yaml"), "loop.yaml is not valid YAML", "recursion"),
        (("plan", "utf16.yaml"), "unknown key 'mixx'", "did you mean 'mix'? (utf16.yaml:2)"),
        (("plan", "mark.yaml"), "unknown key 'mixx'", "did you mean 'mix'? (mark.yaml:2)"),
        # overrides
        ((*PLAN, "pretrain"), "'pretrain' is not an override", "write key=value"),
        ((*PLAN, "=5"), "'=5' is not an override", "write key=value"),
        ((*PLAN, "kto=1"), "error: kto: 1: input", "(on the command line)"),
        (("evaluate", "model", "max_new_tokens=4"), "evaluate.max_new_tokens'", "are benchmarks, data, dtype,"),
        ((*PLAN, "pretrian.trainer.max_steps=3"), "unknown key 'pretrian'", "did you mean 'pretrain'?"),
        ((*PLAN, "pretrain.trainer.max_step=3"), "trainer.max_step", "did you mean 'max_steps'?"),
        ((*PLAN, "pretrain.trainer.learning_rate=fast"), "trainer.learning_rate='fast' is text", "write the number"),
        ((*PLAN, "pretrain.trainer.max_steps=2.5"), "trainer.max_steps=2.5", "write a whole number"),
        ((*PLAN, "pretrain.trainer.bf16=yes"), "trainer.bf16='yes'", "write true or false"),
        ((*PLAN, "pretrain.trainer=3"), "pretrain.trainer: 3", "on the command line"),
        ((*PLAN, "pretrain.processes=0"), "pretrain.processes: 0", "greater than or equal to 1"),
        ((*PLAN, "mix.sequence_length=long"), "mix.sequence_length: 'long'", "valid integer"),
        ((*PLAN, "mix.sources.wiki.ratio=1"), "names no element 'wiki'", "one of web"),
        ((*PLAN, "mix.sources.².ratio=1"), "names no element '²'", "an index below 1"),
        ((*PLAN, "mix.sources.7.ratio=1"), "names no element '7'", "an index below 1"),
        ((*PLAN, "mix.budget={sequences: 8, sequences: 9}"), "key 'sequences' is given twice", "keep one of them"),
        ((*PLAN, "mix.sources.web.dataset=${mix}/a"), "${mix} stands for", "(on the command line)"),
        ((*PLAN, "mix.sources.web.dataset=${root}/a"), "root is required and not set", "add root=VALUE"),
        ((*PLAN, "name=a b"), "name: 'a b'", "on the command line"),
        ((*PLAN, "seed=[1"), "seed: '[1'", "valid integer"),
        # names of what is read
        ((*PLAN, "mix.sources.web.dataset=data/txt.jsonl"), "no dataset at data/txt.jsonl", "'data/text.jsonl'?"),
        ((*PLAN, "mix.sources.web.dataset=dat/x.jsonl"), "there is no dataset at dat/x.jsonl", "existing path or glob"),
        ((*PLAN, "mix.sources.web.dataset=data/trian"), "there is no dataset at data/trian", "existing path or glob"),
        ((*PLAN, "mix.sources.web.dataset=./rows"), "there is no dataset at ./rows", "name an existing path or glob"),
        ((*PLAN, "mix.sources.web.dataset=~/no-such.csv"), "no dataset at ~/no-such.csv", "existing path or glob"),
        ((*PLAN, "base.model=modl"), "there is no model at modl", "did you mean 'model'?"),
        ((*PLAN, "pretrain.model=done/kto"), "there is no model at done/kto", "existing path or glob"),
        ((*PLAN, "soup.members=[pretraned]"), "no model at pretraned", "did you mean 'pretrained'?"),
        # sections that do not go together
        ((*PLAN, "mix.sources.web.ratio=0.97"), "sum to 0.97, not 1: add 0.03", "recipe.yaml:5 and the command line"),
        ((*PLAN, "pretrain=null"), "names checkpoints, and the recipe has no `pretrain:`", "name model folders"),
        ((*PLAN, "pretrain.trainer.save_strategy=no"), "the soup has no checkpoints", "set save_steps"),
        ((*PLAN, "kto={data: [rollouts]}"), "the recipe has no `rollout:` section", "add one, or other data"),
        ((*PLAN, "evaluate={models: [sup], benchmarks: [gsm8k]}"), "there is no model at sup", "'soup'"),
        # steps and artifacts
        (("run", "recipe.yaml", "--only", "koto"), "the recipe has no step 'koto'", "pretrain, soup"),
        (("run", "recipe.yaml", "--shard", "0/2"), "--shard is a share of one step", "name the step with --only"),
        (("run", "recipe.yaml", "--only", "mix", "--shard", "2/2"), "'2/2' is not a shard", "INDEX/COUNT"),
        (("show", "recipe.yaml:koto"), "the recipe has no step 'koto'", "name one of"),
        (("show", "recipe.yaml:mix"), "mix is not built", "ladle run recipe.yaml --only mix"),
        (("show", "recpe.yaml:mix"), "there is no recipe at recpe.yaml", "recipe.yaml"),
        (("show", "nowhere"), "there is no artifact at nowhere", "RECIPE:STEP"),
        (("show", "data"), "data is not an artifact", "name a folder that a ladle stage made"),
        (("verify", "done"), "done is not an artifact, but holds 1 of them", "done/mix/mix-0"),
        (("verify", "done/mix"), "done/mix is not an artifact, but holds 1 of them", "done/mix/mix-0"),
        (("evaluate", "data"), "data holds no model (no config.json)", "save_pretrained"),
        (("evaluate", "model", "--benchmarks", "gsm9k"), "'gsm9k'", "use one of aime24"),
        (("soup",), "no members are named", "ladle soup MEMBER MEMBER"),
        (("soup", "model", "method=avg"), "method", "uniform"),
        (("pretrain", "recipe.yaml", "recipe.yaml"), "needs one recipe, and 2 are named", "ladle pretrain RECIPE"),
        (("fetch",), "name one thing to fetch", "ladle fetch MODEL"),
        (("fetch", "data/modl.safetensors"), "there is no model at data/modl.safetensors", "existing path"),
        (("grade", "pairs.jsonl"), "the verdicts on pairs.jsonl have no file", "--out"),
        (("grade", "pairs.jsonl", "--out", "v.jsonl"), "pairs.jsonl", "name"),
        (("compare", "data", "nowhere"), "data", "result"),
        (("rescore", "nowhere"), "nowhere", "name"),
        (("push", "done/mix/mix-0", "mine"), "'mine' is not a repository", "name it org/name"),
        (("launch", "recipe.yaml", "--profile", "profile.yaml"), "--profile is for Slurm jobs", "add --slurm"),
        (("launch", "recipe.yaml", "--slurm", "--profile", "profile.yaml"), "'partitions'", "'partition'?"),
        (("launch", "recipe.yaml", "--slurm", "--profile", "data"), "data", "name an existing"),
    ],
)
def test_wrong_input_is_one_message_with_the_value_and_the_fix(here, capfd, arguments, seen, fix):
    (here / "runs").mkdir()
    (here / "runs" / ".file-hashes.json").write_text("{}")  # what is known of inputs may grow
    before = {path: path.stat().st_ino for path in here.rglob("[!.]*")}
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capfd.readouterr()
    assert ended.value.code == 2, said
    message = said.err.splitlines()
    assert [line.startswith("error: ") for line in message] == [True], said.err
    assert seen in message[0]
    assert fix in message[0].split(seen, 1)[1]
    assert said.out == ""
    assert {path: path.stat().st_ino for path in here.rglob("[!.]*")} == before


@pytest.mark.parametrize(
    "arguments",
    [
        *(("plan",), ("plan", "recipe.yaml", "--roots", "x"), ("plam", "recipe.yaml")),
        *(("run", "recipe.yaml", "--price", "cheap"), ("launch", "recipe.yaml", "--processes", "0")),
        ("mix", "recipe.yaml", "--export", "csv"),
    ],
)
def test_a_usage_error_says_what_is_wrong_and_how_to_get_help(here, capfd, arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert "Usage: " in said
    assert "Error: " in said
    assert "Traceback" not in said
