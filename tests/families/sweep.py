"""Every family of models through the whole pipeline, tiny: fetch, mix, pretrain, kill, resume, soup, KTO, evaluate.

    python -m tests.families.sweep --page docs/models.md      # all, and the page (`make sweep`)
    python -m tests.families.sweep llama mamba                # some; a line of JSON each

Each runs in a process of its own, forked from this one, which has torch loaded already: that halves the time.

What must hold, whatever the architecture: the held-out loss of packed rows is that of the documents alone (at most
3e-6 nats a token: float32 sums in another order), so is the first training loss; a killed and resumed training leaves
the bytes of an uninterrupted one; a soup is the mean of its members; the rewards of KTO's first step are
exactly 0; greedy completions are those of transformers' `generate`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, DefaultFlowCallback, LlamaConfig, LlamaForCausalLM

import ladle
from ladle.data.store import MixedDataset
from ladle.errors import LadleError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "initializer_range": 0.1,
}
WINDOW: dict[str, Any] = {"sliding_window": 16}
BOTH = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
GEMMA = {"head_dim": 8}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4}
LOCAL_MOE = {"num_experts_per_tok": 2, "num_local_experts": 4}
ROUTED_MOE = MOE | {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
ROUTED_MOE |= {"first_k_dense_replace": 1}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
LATENT |= {"num_key_value_heads": 4}
ALIBI = {"alibi": True}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
DELTA = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": MOE | BOTH | {"head_dim": 8, "num_shared_experts": 1, "num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "bamba": MAMBA_2 | {"attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_head": 4},
    "codegen": {"rotary_dim": 4, "n_ctx": 160},
    "cohere": {},
    "cohere2": BOTH,
    "deepseek_v2": ROUTED_MOE | LATENT,
    "deepseek_v3": ROUTED_MOE | LATENT,
    "dots1": ROUTED_MOE | {"num_key_value_heads": 4},
    "ernie4_5": {"head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 16},
    "exaone4": BOTH,
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_alibi": {"model_type": "falcon"} | ALIBI,
    "falcon_h1": MAMBA_2 | {"mamba_d_ssm": 64, "head_dim": 8},
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": MOE,
    "gemma": GEMMA,
    "gemma2": GEMMA | BOTH | {"query_pre_attn_scalar": 8},
    "gemma3": {
        "text_config": SIZES | GEMMA | BOTH | {"query_pre_attn_scalar": 8, "vocab_size": 280},
        "vision_config": SIZES | {"image_size": 16, "patch_size": 8},
    },
    "gemma3_text": GEMMA | BOTH | {"query_pre_attn_scalar": 8},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": ROUTED_MOE | {"head_dim": 8},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gpt_neox": {},
    "gpt_oss": LOCAL_MOE | BOTH | {"head_dim": 8},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granitemoe": LOCAL_MOE,
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "jamba": MOE | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "llama": {},
    "llama4_text": LOCAL_MOE | {"head_dim": 8, "intermediate_size_mlp": 64, "attention_chunk_size": 16},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "minimax": LOCAL_MOE | LINEAR | {"head_dim": 8, "block_size": 16},
    "minimax_m2": LOCAL_MOE | {"head_dim": 8, "rotary_dim": 8},
    "ministral": BOTH | {"head_dim": 8},
    "mistral": WINDOW,
    "mixtral": LOCAL_MOE | WINDOW,
    "modernbert-decoder": {"local_attention": 16, "layer_types": BOTH["layer_types"], "bos_token_id": 0},
    "mpt": {"n_heads": 4, "max_seq_len": 160, "d_model": 32, "n_layers": 2},
    "nanochat": {},
    "nemotron": {"head_dim": 8},
    "olmo": {},
    "olmo2": {},
    "olmo3": BOTH,
    "olmoe": MOE,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.1},
    "persimmon": {},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": WINDOW,
    "phimoe": LOCAL_MOE | WINDOW,
    "qwen2": {},
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 16},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": MOE | {"head_dim": 8},
    "qwen3_next": MOE | LINEAR | DELTA | {"head_dim": 8, "shared_expert_intermediate_size": 16},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 16, "lru_width": 32},
    "seed_oss": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": WINDOW,
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "init_std": 0.1},
}
"""What a tiny model of each family needs beside SIZES; a name is its model_type unless the fields say another."""

PRELOADED = (
    *("ladle.data.fetch", "ladle.data.mix", "ladle.data.prefer", "ladle.training.pretrain", "ladle.soups.make"),
    *("ladle.kto.reference", "ladle.kto.train", "ladle.evaluation.evaluate", "ladle.generation.transformers_backend"),
    "deepspeed",
)
HEAD = """# Families of models

`make sweep` takes a tiny random model of every family below through the whole pipeline: fetch (from a config and from
a folder), mix, pretrain, kill -9, resume, soup, KTO and evaluation. A family *works* if all of this holds: the
first training loss and the held-out loss of packed rows are those of the documents alone, to 3e-6 nats per token; the
resumed training leaves the bytes of an uninterrupted one; the soup is the mean of its members, rounded once; the
rewards of KTO's first step are exactly 0; greedy completions are those of `generate`, token for token. Special
treatment, such as one document per row, is found by probing the model before its first step (`models/probe.py`). It is
a warning, and kept in the record. Families that are not listed are probed in the same way.

"""
"""What docs/models.md says before its table."""
LENGTH, STEPS, KILLED_AFTER, NEW_TOKENS = 64, 6, 3, 24
NATS = 3e-6


@dataclass
class Outcome:
    """What became of a family."""

    family: str
    handling: list[str] = field(default_factory=list)
    """What is done otherwise than for most, as the record of the training says."""
    refusals: dict[str, str] = field(default_factory=dict)
    """By stage, why it is refused."""
    faults: list[str] = field(default_factory=list)
    """What did not hold."""
    seconds: float = 0.0

    def words(self) -> str:
        """Say it in a cell of a table."""
        if self.faults:
            return "fails: " + "; ".join(fault.splitlines()[-1] for fault in self.faults)  # of a traceback, the error
        early = [stage for stage in self.refusals if stage not in ("KTO", "evaluation")]
        works = "works" + (f" with {' and '.join(self.handling)}" if self.handling else "")
        return "; ".join(
            [*([] if early else [works]), *(f"{one} refused: {why}" for one, why in self.refusals.items())]
        )


def write_inputs(folder: Path, family: str) -> Path:
    """Write documents, preferences, questions and a recipe, and return the recipe."""
    texts = [
        f"{a} apples and {b} pears make {a + b} pieces of fruit" + f", and {a} more make {2 * a + b}" * (b % 3) + "."
        for a in range(2, 40)
        for b in range(1, 8)
    ]
    preferences = [
        {"prompt": f"What is {a} plus 3?" + " Think." * (a % 4), "completion": f" {a + 3 + a % 2}", "label": a % 2 == 0}
        for a in range(10, 26)
    ]
    questions = [{"question": f"What is {a} plus 4?", "answer": str(a + 4)} for a in range(3)]
    rows = {
        "documents": [{"text": text} for text in texts],
        "preferences": preferences,
        "questions": questions,
    }
    for name, several in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several))
    # every step takes all rows
    trainer = {"per_device_train_batch_size": 16, "logging_steps": 1, "report_to": "none", "use_cpu": True}
    steps = {"max_steps": STEPS, "save_steps": 2, "eval_strategy": "steps", "eval_steps": STEPS, "learning_rate": 3e-3}
    tokenizer = {"dataset": str(folder / "documents.jsonl"), "vocab_size": 280}
    recipe = {
        "name": family,
        "base": {"init": {"architecture": {"model_type": family} | SIZES | FAMILIES[family], "tokenizer": tokenizer}},
        "mix": {
            "sources": [{"name": "documents", "dataset": str(folder / "documents.jsonl"), "ratio": 1.0}],
            "budget": {"sequences": 4},
            "sequence_length": LENGTH,
            "validation": {"sequences": 4},
        },
        "pretrain": {"trainer": trainer | steps},
        "soup": {"members": ["base", "checkpoints"]},
        "kto": {
            "data": [{"dataset": str(folder / "preferences.jsonl"), "split": "train"}],
            "max_length": 128,
            "trainer": trainer | {"max_steps": 2, "learning_rate": 1e-3, "save_strategy": "no"},
        },
        "evaluate": {
            "models": [{"model": "pretrained"}],
            "benchmarks": [{"name": "sums", "dataset": str(folder / "questions.jsonl")}],
            "prompt": "cot",
            "sampling": {"temperature": 0, "max_new_tokens": NEW_TOKENS},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def run_family(family: str, folder: Path) -> Outcome:
    """Take a family through the pipeline in this process, and check what must hold."""
    outcome, started = Outcome(family), time.monotonic()
    stages = {"model": check_model, "pretraining": check_training}
    stages |= {"soup": check_soup, "KTO": check_rewards, "evaluation": check_greedy}
    recipe = write_inputs(folder, family)
    for stage, check in stages.items():
        try:
            outcome.faults += check(recipe, folder)
        except LadleError as error:
            outcome.refusals[stage] = getattr(error, "problem", str(error))
            if stage in ("model", "pretraining"):
                break
    if not outcome.refusals.keys() & {"model", "pretraining"}:
        metrics = ladle.open(recipe, root=folder / "killed")["pretrain"].metrics
        choices = {"attn_implementation": "eager", "documents": "one a row", "logits": "all at once"}
        words = ("eager attention", "one document a row", "a loss on all logits")
        outcome.handling = [
            word for word, (key, value) in zip(words, choices.items(), strict=True) if metrics.get(key) == value
        ]
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def check_model(recipe: Path, folder: Path) -> Iterator[str]:
    """Make a model, fetch its folder, and mix documents for it."""
    run = ladle.open(recipe, root=folder / "killed")
    base = run.build("base")
    again = ladle.fetch(str(base.path), out=folder / "again")
    if weights(again.model) != weights(base.model):
        yield "fetching a folder changed its weights"
    run.build("mix")


def check_training(recipe: Path, folder: Path) -> Iterator[str]:
    """Compare a killed and resumed training with an uninterrupted one, its losses with those of documents alone."""
    run = ladle.open(recipe, root=folder / "killed")
    if not kill_training(run):
        yield "the training ended before it was killed"
    trained = run.build("pretrain")
    whole = ladle.open(recipe, root=folder / "whole").build("pretrain")
    if trained.counters["resumed_from_step"] != 2:
        yield f"it resumed from step {trained.counters['resumed_from_step']}, not from 2"
    if trained.digest != whole.digest:
        yield "resumed and uninterrupted training differ"
    mixture = run["mix"].path
    alone, passes_are_equal = loss_alone(run["base"].model, mixture, "train")
    losses = {"first training loss": (trained.metrics["first_loss"], alone)} if passes_are_equal else {}
    losses["held-out loss"] = trained.metrics["last_eval_loss"], loss_alone(trained.model, mixture, "validation")[0]
    for name, (packed, apart) in losses.items():
        if not abs(packed - apart) <= NATS:
            yield f"{name}: packed {packed:.6f}, documents alone {apart:.6f} ({packed - apart:+.1e})"


def kill_training(run: Any) -> bool:
    """Train in a fork that kills itself after a step behind its first checkpoint; return whether it did."""
    child = os.fork()
    if child == 0:
        go_on = DefaultFlowCallback.on_step_end

        def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == KILLED_AFTER:
                os.kill(os.getpid(), signal.SIGKILL)
            return go_on(self, args, state, control, **kwargs)

        DefaultFlowCallback.on_step_end = stop
        try:
            run.build("pretrain")
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def weights(folder: Path) -> dict[str, Any]:
    """Return the bytes of every tensor of a model folder, with dtype and shape."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                found[name] = (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())
    return found


def loss_alone(folder: Path, mixture: Path, split: str) -> tuple[float, bool]:
    """Return the loss in nats a token of a mixture's documents, each alone, and whether training passes are equal."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dataset, total, count = MixedDataset(mixture, split), 0.0, 0
    ids = None
    with torch.no_grad():
        for row in range(len(dataset)):
            lengths = dataset.lengths_of_row(row)
            for ids in torch.from_numpy(dataset[row]["input_ids"])[: sum(lengths)].split(lengths):
                logits = model(ids[None], use_cache=False).logits[0, :-1].float()
                total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
                count += len(ids) - 1
        model.train()
        first, second = (model(ids[None], use_cache=False).logits for _ in range(2))
    return total / count, bool(torch.equal(first, second))


def check_soup(recipe: Path, folder: Path) -> Iterator[str]:
    """Compare a soup with the mean of its members in float64, rounded once."""
    run = ladle.open(recipe, root=folder / "killed")
    averaged = weights(run.build("soup").model)
    members = [weights(member) for member in (run["base"].model, *run["pretrain"].checkpoints)]
    if averaged.keys() != members[0].keys():
        yield f"the soup has {len(averaged)} tensors, its members {len(members[0])}"
    for name, (dtype, _, data) in averaged.items():
        rows = [np.frombuffer(member[name][2], np.float32) for member in members] if dtype == "torch.float32" else []
        if rows and np.mean(rows, axis=0, dtype=np.float64).astype(np.float32).tobytes() != data:
            yield f"{name} of the soup is not the mean"


def check_rewards(recipe: Path, folder: Path) -> Iterator[str]:
    """Align, and look at the rewards of the first step, before which policy and reference are the same."""
    aligned = ladle.open(recipe, root=folder / "killed").build("kto")
    first = json.loads((aligned.path / "training_log.jsonl").read_text().splitlines()[0])
    rewards = [first["rewards/chosen"], first["rewards/rejected"]]
    if any(rewards):
        yield f"KTO's first rewards are {rewards}"


def check_greedy(recipe: Path, folder: Path) -> Iterator[str]:
    """Evaluate, and compare greedy completions, made in one batch, with `generate`, one prompt at a time."""
    run = ladle.open(recipe, root=folder / "killed")
    run.build("evaluate/pretrained")
    place = run["pretrain"].model
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    prompts = ["3 apples and", "12 apples and 5 pears make 17 pieces of fruit, and 12 more make 29. What", "What is 7"]
    ours = ladle.generate(place, prompts, temperature=0, max_new_tokens=NEW_TOKENS)
    for prompt, (sample,) in zip(prompts, ours, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
        if sample.token_ids != theirs:
            yield f"greedy: {sample.token_ids[:8]} …, generate {theirs[:8]} … after {prompt!r}"


def load_all() -> None:
    """Load all modules, and what the first saved model sets up, so that a fork need not."""
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(vocab_size=280, **SIZES)).save_pretrained(folder)
    gc.freeze()  # what is loaded stays: each collection in a fork would walk and copy it


def run_apart(family: str) -> Outcome:
    """Run a family in a fork of this process; a crash is a fault."""
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("fork").Process(target=_run_and_write, args=(family, Path(folder)))
        child.start()
        child.join()
        if child.exitcode == 0:
            return Outcome(**json.loads((Path(folder) / "outcome.json").read_text()))
        lines = (Path(folder) / "errors.txt").read_text().splitlines()
        return Outcome(family, faults=[f"exit code {child.exitcode}: " + "\n".join(lines[-9:])])


def _run_and_write(family: str, folder: Path) -> None:
    with (folder / "errors.txt").open("w") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    (folder / "outcome.json").write_text(json.dumps(asdict(run_family(family, folder))))


def main() -> None:
    """Read the command line, run the families, print what became of each, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    load_all()
    outcomes = []
    for family in arguments.families:
        outcomes.append(run_apart(family))
        sys.stdout.write(json.dumps(asdict(outcomes[-1])) + "\n")
        sys.stdout.flush()
    if arguments.page:
        arguments.page.write_text(page(sorted(outcomes, key=lambda one: one.family)), encoding="utf-8")


def page(outcomes: list[Outcome]) -> str:
    """Return the page about the families."""
    rows = [f"| {one.family} | {one.words().replace('|', '/').replace(chr(10), ' ')} |\n" for one in outcomes]
    return HEAD + "| family | result |\n|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    main()
