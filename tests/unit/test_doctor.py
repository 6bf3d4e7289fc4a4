# ruff: noqa: E501 - one fault a line
"""`ladle doctor` against planted faults, one at a time in a set-up that is otherwise good, and against good ones."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ladle.checkup import Finding, Gpu, Machine
from ladle.preflight.diagnose import diagnose
from tests.tiny_models import make_model, make_tokenizer

GIB = 2**30
CPU = Machine(cores=4, memory_bytes=16 * GIB, torch="2.13.0+cpu")
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0), "580.95.05")
GPUS = Machine(
    gpus=tuple(dataclasses.replace(H100, index=index) for index in range(8)),
    cores=64,
    memory_bytes=900 * GIB,
    torch="2.13.0+cu130",
    cuda="13.0",
    packages=frozenset({"deepspeed", "flash_attn", "ray", "vllm"}),
)


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, documents, prompts, preference data and a benchmark, all in order."""
    folder = tmp_path_factory.mktemp("good")
    make_model("qwen3").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rows = [
        {"question": f"{a} plus {b}?", "answer": str(a + b), "text": f"{a} + {b} = {a + b}. " * 20}
        for a in range(30)
        for b in range(30)
    ]
    write(folder / "text.jsonl", rows)
    labelled = [
        {"prompt": row["question"], "completion": row["answer"], "label": n % 2 == 0} for n, row in enumerate(rows)
    ]
    write(folder / "preference.jsonl", labelled)
    write(folder / "benchmarks" / "gsm8k" / "test.jsonl", [{"question": "1+1?", "answer": "So #### 2"}] * 3)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Setup:
    """A recipe with its files and a machine, good until something is changed."""

    def __init__(self, good_files: Path, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(good_files, folder, dirs_exist_ok=True)
        self.machine = CPU
        self.root = folder / "runs"
        trainer = {"max_steps": 20, "per_device_train_batch_size": 2, "save_steps": 5}
        self.recipe: dict[str, Any] = {
            "name": "t",
            "base": {"model": str(folder / "model")},
            "mix": {
                "sources": [{"name": "text", "dataset": str(folder / "text.jsonl"), "ratio": 1.0}],
                "budget": {"sequences": 128},
                "sequence_length": 128,
            },
            "pretrain": {"trainer": copy.deepcopy(trainer)},
            "soup": {"members": ["base", "checkpoints"]},
            "rollout": {"prompts": {"dataset": str(folder / "text.jsonl")}, "max_new_tokens": 16},
            "kto": {
                "data": ["rollouts", {"dataset": str(folder / "preference.jsonl")}],
                "max_length": 128,
                "trainer": {"max_steps": 4, "per_device_train_batch_size": 2, "save_strategy": "no"},
            },
            "evaluate": {
                "models": ["base", "kto"],
                "benchmarks": ["gsm8k"],
                "data": str(folder / "benchmarks"),
                "sampling": {"max_new_tokens": 32},
            },
        }

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key of the recipe."""
        place = self.recipe
        *parents, last = key.split(".")
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value

    def edit_json(self, name: str, **changes: Any) -> None:
        """Change fields of a JSON file; None removes one."""
        path = self.folder / name
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    def diagnose(self) -> list[Finding]:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe))
        return diagnose(path, [], self.root, self.machine)


Plant = Callable[[Setup], None]


def setting(key: str, value: Any, machine: Machine = CPU) -> Plant:
    def plant(setup: Setup) -> None:
        setup.set(key, value)
        setup.machine = machine

    return plant


def on(machine: Machine, *settings: tuple[str, Any]) -> Plant:
    def plant(setup: Setup) -> None:
        setup.machine = machine
        for key, value in settings:
            setup.set(key, value)

    return plant


def rows(name: str, *content: dict[str, Any]) -> Plant:
    return lambda setup: write(setup.folder / name, list(content))


def without(machine: Machine, **changes: Any) -> Machine:
    return dataclasses.replace(machine, **changes)


def each_gpu(**changes: Any) -> Machine:
    return without(GPUS, gpus=tuple(dataclasses.replace(gpu, **changes) for gpu in GPUS.gpus))


def remove(name: str) -> Plant:
    return lambda setup: (setup.folder / name).unlink()


def cut_short(name: str, size: int) -> Plant:
    return lambda setup: (setup.folder / name).write_bytes((setup.folder / name).read_bytes()[:size])


def text(name: str, content: str) -> Plant:
    return lambda setup: (setup.folder / name).write_text(content)


def init(**changes: Any) -> Plant:
    def plant(setup: Setup) -> None:
        architecture = {"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        architecture |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16} | changes
        setup.recipe["base"] = {"init": {"architecture": architecture, "tokenizer": str(setup.folder / "model")}}

    return plant


def closed_root(setup: Setup) -> None:
    (setup.folder / "file").write_text("")
    setup.root = setup.folder / "file" / "runs"


def large_kto(setup: Setup) -> None:
    """64 rows of 128 tokens in a pass, on a machine whose memory takes a few."""
    init(intermediate_size=32_768)(setup)
    setup.set("kto.trainer.per_device_train_batch_size", 256)
    setup.machine = without(CPU, memory_bytes=4 * GIB)


def unfit_tokenizer(setup: Setup) -> None:
    setup.edit_json("model/config.json", vocab_size=100)


def sharded_without_a_shard(setup: Setup) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (setup.folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


FAULTS: dict[str, tuple[str, str, str, str, Plant]] = {
    # name: family, level, what the message says, what the fix says, the fault
    "data: no such file": ("data", "error", "there is no dataset at absent.jsonl", "existing path", setting("mix.sources.0.dataset", "absent.jsonl")),
    "data: no such column": ("data", "error", "has no column txt", "to a column it has", setting("mix.sources.0.text", "txt")),
    "data: no such split": ("data", "error", "no split", "split", lambda s: (s.set("mix.sources.0.dataset", str(s.folder / "benchmarks")), s.set("mix.sources.0.split", "validation"))),
    "data: an empty file": ("data", "error", "gives a document", "format", text("text.jsonl", "")),
    "data: rows that are not JSON": ("data", "warning", "cannot be used", "fix the rows", lambda s: (s.folder / "text.jsonl").write_text("not json\n" * 20 + (s.folder / "text.jsonl").read_text())),
    "data: too little for the budget": ("data", "error", "more than 4 passes", "lower its ratio or the budget", setting("mix.budget.sequences", 10**7)),
    "data: ratios that do not sum to one": ("arguments", "error", "ratios sum to 0.97", "add 0.03", setting("mix.sources.0.ratio", 0.97)),
    "data: prompts without the answer's column": ("data", "error", "there is no column 'gold'", "rollout.prompts.answer", setting("rollout.prompts.answer", "{gold}")),
    "data: preference data of one label": ("data", "error", "labelled True", "rollout", lambda s: (rows("preference.jsonl", *[{"prompt": "a", "completion": str(n), "label": True} for n in range(9)])(s), s.set("kto.data", [{"dataset": str(s.folder / "preference.jsonl")}]))),
    "data: preference data of another form": ("data", "error", "no column", "format", rows("preference.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})),
    "data: conversations of another form": ("data", "error", "no column 'messages'", "format", lambda s: s.set("sft.data", [{"dataset": str(s.folder / "preference.jsonl"), "format": "messages"}])),
    "data: a benchmark without answers": ("data", "error", "has no answer", "name the field", rows("benchmarks/gsm8k/test.jsonl", {"question": "1+1?"})),
    "data: a split of one file": ("data", "warning", "split 'trian' is not looked for", "leave split out", setting("mix.sources.0.split", "trian")),
    "data: a benchmark's name misspelt": ("data", "error", "benchmarks/gsm8/test.jsonl", "did you mean 'gsm8k'", setting("evaluate.benchmarks", ["gsm8"])),
    "model: no such folder": ("model", "error", "there is no model at ./absent", "existing path", setting("base.model", "./absent")),
    "model: no config.json": ("model", "error", "no config.json", "save_pretrained", remove("model/config.json")),
    "model: no weights": ("model", "error", "no weights", "safetensors", remove("model/model.safetensors")),
    "model: a missing shard": ("model", "error", "lacks 1 of 2 weight files", "fetch the missing", sharded_without_a_shard),
    "model: weights cut short": ("model", "error", "is not a complete safetensors file", "copy it again", cut_short("model/model.safetensors", 5000)),
    "model: config.json cut short": ("model", "error", "config.json is not JSON", "fetch the file again", cut_short("model/config.json", 20)),
    "model: tokenizer.json of something else": ("model", "error", "tokenizer.json is not a tokenizer", "fetch the file again", text("model/tokenizer.json", "{}")),
    "data: a part past the benchmark's end": ("data", "error", "leave no item of the", "lower start", setting("evaluate.start", 10**6)),
    "model: a name misspelt": ("model", "error", "there is no model at pretraned", "did you mean 'pretrained'", setting("evaluate.models", ["base", "pretraned"])),
    "model: answers longer than its positions": ("model", "warning", "4,096 new tokens", "rollout.max_new_tokens below 512", setting("rollout.max_new_tokens", 4096)),
    "model: alignment longer than its positions": ("model", "error", "has positions for 512", "set kto.max_length=512", setting("kto.max_length", 1024)),
    "model: an unknown type": ("model", "error", "'qwen33'", "did you mean 'qwen3'", lambda s: s.edit_json("model/config.json", model_type="qwen33")),
    "model: sizes that do not fit": ("model", "error", "cannot build", "config.json", init(hidden_size=-64)),
    "model: a tokenizer of another model": ("model", "error", "has 287 tokens and the model 100", "own tokenizer", unfit_tokenizer),
    "model: no end-of-text token": ("model", "error", "names no eos_token", "tokenizer_config.json", lambda s: s.edit_json("model/tokenizer_config.json", eos_token=None, pad_token=None)),
    "model: no tokenizer": ("model", "error", "no tokenizer", "tokenizer.json", remove("model/tokenizer.json")),
    "model: rows longer than its positions": ("model", "error", "has positions for 512", "sequence_length=512", setting("mix.sequence_length", 1024)),
    "model: a chat without a template": ("model", "error", "no chat template", "tokenizer_config.json", setting("rollout.prompt", "chat")),
    "model: members of the soup in two dtypes": ("model", "error", "different dtypes (bfloat16, float32)", "allow_dtypes=true", setting("base.dtype", "bfloat16")),
    "model: documents that see each other": ("model", "warning", "row of its own", "nothing to set", init(model_type="opt", ffn_dim=96, word_embed_proj_dim=64)),
    "model: not causal": ("model", "error", "is not causal", "causal language model", init(model_type="bert", head_dim=None)),
    "model: hidden states out of reach": ("model", "error", "no way to the hidden states", "docs/models.md", init(model_type="llama4_text")),
    "model: no small copy to probe": ("model", "warning", "no small copy of a falcon_h1", "nothing to set", init(model_type="falcon_h1", hidden_size=128, intermediate_size=200_000, mamba_n_heads=32, mamba_d_head=8, mamba_d_ssm=256)),
    "model: routers' loss under KTO": ("model", "error", "KTO has none", "output_router_logits to false", init(model_type="mixtral", num_local_experts=4, output_router_logits=True)),
    "model: a balance loss without routers": ("model", "error", "sequence_aux_loss has no effect", "leave it out", setting("pretrain.sequence_aux_loss", 1e-3)),
    "model: generation settings that contradict": ("model", "warning", "generation_config.json", "correct it", text("model/generation_config.json", '{"do_sample": false, "temperature": 0.6}')),
    "arguments: an unknown name": ("arguments", "error", "learning_rat", "did you mean 'learning_rate'", setting("pretrain.trainer.learning_rat", 1)),
    "arguments: a name of earlier versions": ("arguments", "error", "warmup_ratio", "warmup_steps", setting("pretrain.trainer.warmup_ratio", 0.1)),
    "arguments: an unknown value": ("arguments", "error", "cosin is not a valid", "did you mean 'cosine'", setting("pretrain.trainer.lr_scheduler_type", "cosin")),
    "arguments: an unknown key": ("arguments", "error", "pretrian", "did you mean 'pretrain'", setting("pretrian", {})),
    "arguments: no checkpoint for the soup": ("arguments", "error", "a checkpoint every 500 steps, of 20", "save_steps=4", setting("pretrain.trainer.save_steps", 500)),
    "arguments: warm-up to the end": ("arguments", "warning", "30 steps of warm-up", "warmup_steps=0.1", setting("pretrain.trainer.warmup_steps", 30)),
    "arguments: a step larger than the data": ("arguments", "error", "a step takes 2,048 rows, and the mixture has 128", "accumulation", setting("pretrain.trainer.gradient_accumulation_steps", 1024)),
    "arguments: two precisions": ("arguments", "error", "bf16 and fp16 are both set", "keep one", on(CPU, ("pretrain.trainer.bf16", True), ("pretrain.trainer.fp16", True))),
    "arguments: a learning rate of 3": ("arguments", "error", "the learning rate is 3", "1e-7", setting("kto.trainer.learning_rate", 3.0)),
    "arguments: more last checkpoints than there are": ("arguments", "error", "the last 9 checkpoints, and the training saves 4", "soup.last=4", setting("soup", {"method": "last_n", "last": 9, "members": ["checkpoints"]})),
    "arguments: text for a number": ("arguments", "error", "'1e-4x' is text", "without quotes", setting("pretrain.trainer.learning_rate", "1e-4x")),
    "arguments: one that Ladle does not take": ("arguments", "error", "load_best_model_at_end", "leave it out", setting("pretrain.trainer.load_best_model_at_end", True)),
    "arguments: an absent tracker": ("arguments", "error", "pip install wandb", "leave report_to out", setting("pretrain.trainer.report_to", "wandb")),
    "arguments: float16 weights": ("arguments", "error", "float16 cannot be trained", "dtype: float32", setting("pretrain.dtype", "float16", GPUS)),
    "arguments: nothing held out to evaluate on": ("arguments", "error", "holds none out", "mix.validation", setting("pretrain.trainer.eval_strategy", "epoch")),
    "arguments: no split to evaluate on": ("arguments", "error", "the split 'test'", "into: test", setting("kto.trainer.eval_strategy", "epoch")),
    "disk: a folder that cannot be": ("disk", "error", "cannot be written", "--root", closed_root),
    "disk: more than there is": ("disk", "error", "the stages write about", "save_total_limit", lambda s: (init(vocab_size=4_000_000, hidden_size=8192)(s), s.set("pretrain.trainer", {"max_steps": 1000, "save_steps": 2}))),
    "disk: a mixture larger than the disk": ("disk", "error", "mix 4", "free space", lambda s: s.set("mix.budget", {"tokens": 10**12})),
    "memory: activations": ("memory", "error", "activations and logits", "gradient_checkpointing=true", on(without(CPU, memory_bytes=GIB), ("pretrain.trainer.per_device_train_batch_size", 512))),
    "memory: weights and optimizer": ("memory", "error", "weights", "set pretrain.trainer.optim=adafactor", lambda s: (init(vocab_size=500_000, hidden_size=4096)(s), setattr(s, "machine", without(CPU, memory_bytes=8 * GIB)))),
    "memory: a microbatch of KTO": ("memory", "error", "activations and logits", "set kto.max_tokens_per_microbatch=", large_kto),
    "memory: the processes together": ("memory", "error", "communication", "distributed=fsdp", lambda s: (init(vocab_size=200_000, hidden_size=1024)(s), s.set("pretrain.processes", 4), setattr(s, "machine", without(CPU, memory_bytes=12 * GIB)))),
    "devices: more processes than GPUs": ("devices", "error", "16 processes, and this machine has 8 GPU(s)", "processes=8", setting("pretrain.processes", 16, GPUS)),
    "devices: more processes than cores": ("devices", "error", "8 processes, and this machine has no GPU and 4", "ladle launch", setting("pretrain.processes", 8)),
    "devices: idle GPUs": ("devices", "warning", "4 of 8 GPUs are used", "processes=8", setting("pretrain.processes", 4, GPUS)),
    "devices: bfloat16 on an old GPU": ("devices", "error", "has no bfloat16", "fp16=true", setting("pretrain.trainer.bf16", True, each_gpu(name="Tesla V100", capability=(7, 0)))),
    "devices: float16 without a GPU": ("devices", "error", "fp16 needs a GPU", "leave it out", setting("pretrain.trainer.fp16", True)),
    "devices: bfloat16 that the CPU emulates": ("devices", "warning", "no instructions for bfloat16", "dtype=float32", setting("pretrain.trainer.bf16", True, without(CPU, multiplies_bfloat16=False))),
    "model: an optimizer without its package": ("model", "error", "trainer.optim=grokadamw cannot run here", "install its package", setting("pretrain.trainer.optim", "grokadamw")),
    "devices: an adapter without peft": ("devices", "error", "peft, which is not installed", "ladle[peft]", setting("kto.peft", {})),
    "devices: flash attention without a GPU": ("devices", "error", "flash_attention_2 needs a GPU", "attn_implementation=sdpa", setting("kto.attn_implementation", "flash_attention_2")),
    "devices: flex attention without a GPU": ("devices", "error", "flex_attention needs a GPU", "attn_implementation=sdpa", setting("pretrain.attn_implementation", "flex_attention")),
    "devices: flash attention not installed": ("devices", "error", "package flash_attn, which is not installed", "sdpa", setting("kto.attn_implementation", "flash_attention_2", without(GPUS, packages=frozenset()))),
    "devices: a torch without CUDA": ("devices", "error", "built without CUDA", "install a CUDA build", on(without(GPUS, cuda=None))),
    "devices: an old driver": ("devices", "error", "driver 470.10 is too old for torch's CUDA 13.0", "update the driver", on(each_gpu(driver="470.10"))),
    "devices: zero2 in one process": ("devices", "error", "there is one", "distributed: ddp", setting("kto.distributed", "zero2", without(CPU, packages=frozenset({"deepspeed"})))),
    "devices: no DeepSpeed": ("devices", "error", "deepspeed, which is not installed", "ladle[deepspeed]", on(CPU, ("kto.distributed", "zero2"), ("kto.processes", 2))),
    "devices: no Ray": ("devices", "error", "ray, which is not installed", "ladle[ray]", setting("mix.executor", "ray")),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_with_its_fix(good_files, tmp_path, name):
    family, level, message, fix, plant = FAULTS[name]
    setup = Setup(good_files, tmp_path)
    plant(setup)
    found = setup.diagnose()
    fitting = [f for f in found if f.level == level and f.family == family and message in f.message and fix in f.fix]
    assert fitting, "\n".join(map(str, found))


def test_there_are_enough_of_each_kind():
    families = [family for family, *_ in FAULTS.values()]
    assert len(FAULTS) >= 25
    for needed in (("data",), ("model",), ("arguments",), ("disk", "memory"), ("devices",)):
        assert sum(families.count(family) for family in needed) >= 4, needed


@pytest.mark.parametrize(
    "plant",
    [
        lambda setup: None,
        init(),
        on(CPU, ("pretrain.processes", 2), ("kto.processes", 2)),
        on(GPUS, ("pretrain.processes", 8), ("kto.processes", 8), ("pretrain.trainer.bf16", True), ("pretrain.dtype", "bfloat16"), ("base.dtype", "bfloat16")),
        on(GPUS, ("pretrain.processes", 8), ("kto.processes", 8), ("kto.distributed", "zero2"), ("kto.trainer.bf16", True)),
        on(GPUS, ("pretrain.processes", 8), ("kto.processes", 8), ("kto.attn_implementation", "flash_attention_2"), ("kto.dtype", "bfloat16")),
        lambda setup: (setup.recipe.pop("kto"), setup.set("evaluate.models", ["base"])),
        on(without(CPU, packages=frozenset({"peft"})), ("kto.peft", {})),
        on(CPU, ("pretrain.trainer.eval_strategy", "epoch"), ("mix.validation", {"sequences": 8})),
        on(CPU, ("pretrain.trainer.bf16", True), ("pretrain.dtype", "bfloat16"), ("base.dtype", "bfloat16")),
        lambda setup: setup.set("kto", [setup.recipe["kto"]]),
        lambda setup: setup.set("sft", {name: setup.recipe["kto"][name] for name in ("data", "max_length", "trainer")}),
    ],
    ids=["as it is", "fresh model", "two processes", "8 GPUs", "zero2", "flash", "no alignment", "adapter", "held out", "bfloat16 on a CPU", "a curriculum", "SFT on text without a chat template"],
)  # fmt: skip
def test_a_good_setup_gives_no_alarm(good_files, tmp_path, plant):
    setup = Setup(good_files, tmp_path)
    plant(setup)
    alarms = [finding for finding in setup.diagnose() if finding.level != "ok"]
    assert alarms == []


def test_the_microbatch_that_is_advised_fits_and_no_cpu_is_offered_bfloat16(good_files, tmp_path):
    setup = Setup(good_files, tmp_path)
    large_kto(setup)
    (finding,) = [one for one in setup.diagnose() if (one.family, one.subject, one.level) == ("memory", "kto", "error")]
    assert "bfloat16" not in finding.fix
    setup.set("kto.max_tokens_per_microbatch", int(re.findall(r"microbatch=(\d+)", finding.fix)[0]))
    assert [one.level for one in setup.diagnose() if (one.family, one.subject) == ("memory", "kto")] == ["ok"]


@pytest.mark.parametrize("recipe", ["tiny", "quickstart"])
def test_the_recipes_that_come_along_give_no_alarm(repository, tmp_path, recipe):
    found = diagnose(repository / f"recipes/{recipe}.yaml", [], tmp_path, CPU)
    assert [finding for finding in found if finding.level != "ok"] == []
