"""The memory estimate beside reality: peaks of real trainings of 2 GB and more, less that of the bare process.

    python benchmarks/memory_estimate.py [--default-settings] [NAME …]

Measured is what a shape takes of memory: the peak resident size (VmHWM of /proc/self/status) of a process that runs the
pretrain or KTO stage, weights loaded from disk, two steps, an evaluation and a checkpoint after each, and the final
save, less that of a process which does the same with a model of a few thousand parameters (Python, torch,
transformers, the data's libraries).

Two caches hold more than is needed and are kept small here, unless --default-settings: glibc keeps freed blocks of up
to 32 MB in a heap that fragments, unless MALLOC_MMAP_THRESHOLD_ has them returned to the system; and oneDNN keeps up to
1,024 compiled bfloat16 products, one for each number of tokens that an expert got, unless
ONEDNN_PRIMITIVE_CACHE_CAPACITY says fewer. `ladle doctor` proposes both where memory is tight.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ladle.artifacts.files import pretty_json

MEGABYTE = 10**6
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "vocab_size": 32_000,
    "tie_word_embeddings": True,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "max_position_embeddings": 4096,
    "vocab_size": 32_000,
    "tie_word_embeddings": True,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 4096,
    "vocab_size": 32_000,
    "tie_word_embeddings": False,
}
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}
DEEPSEEK_V3_152K = DEEPSEEK_V3 | {"vocab_size": 151_851, "hidden_size": 768}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2 135M, 4 x 256": {"model": SMOLLM2, "batch": 4, "length": 256},
    "qwen3, 4 x 1024": {"model": QWEN3, "batch": 4, "length": 1024},
    "qwen3, 8 x 512, accumulation": {"model": QWEN3, "batch": 8, "length": 512, "accumulation": 2},
    "qwen3 bfloat16, 8 x 1024": {"model": QWEN3, "batch": 8, "length": 1024, "dtype": "bfloat16"},
    "llama, 2 x 512": {"model": LLAMA, "batch": 2, "length": 512},
    "llama, checkpointed, 2 x 512": {"model": LLAMA, "batch": 2, "length": 512, "gradient_checkpointing": True},
    "llama, adafactor, 2 x 1024": {"model": LLAMA, "batch": 2, "length": 1024, "optim": "adafactor"},
    "llama, KTO, 4 x 512": {"model": LLAMA, "batch": 4, "length": 512, "loss": "kto"},
    "deepseek_v3, 6 x 1024": {"model": DEEPSEEK_V3, "batch": 6, "length": 1024},
    "deepseek_v3 152k, checkpointed, 4 x 512": {
        "model": DEEPSEEK_V3_152K,
        "batch": 4,
        "length": 512,
        "gradient_checkpointing": True,
    },
    "deepseek_v3 152k, KTO, adafactor, checkpointed, 4 x 512": {
        "model": DEEPSEEK_V3_152K,
        "batch": 4,
        "length": 512,
        "loss": "kto",
        "optim": "adafactor",
        "gradient_checkpointing": True,
    },
}
BARE = {
    "model": QWEN3 | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 512},
    "batch": 1,
    "length": 64,
}


EVALUATED = 8
"""Held-out rows: one batch."""
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "1048576", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Settings under which what is freed is returned."""


def estimate(shape: dict[str, Any]) -> int:
    """Return the estimated bytes of a shape."""
    from ladle.training.config import PretrainConfig
    from ladle.training.memory import estimate_training

    config = _kto_config(shape) if shape.get("loss") == "kto" else PretrainConfig.model_validate(_section(shape))
    return estimate_training(config, shape["model"], shape["length"], shape["batch"]).total


def prepare(shape: dict[str, Any], folder: Path) -> None:
    """Write the model, and a mixture or labelled completions with their reference for it."""
    from ladle.models.load import init_model, save_model
    from ladle.models.tokenizer import train_tokenizer

    texts = [f"{a} plus {b} is {a + b}, and {b} plus {a} as well." for a in range(40) for b in range(40)]
    tokenizer = train_tokenizer(texts, 320)
    model = init_model(shape["model"], tokenizer, shape.get("dtype", "float32"), 0)
    save_model(model, tokenizer, folder / "model")
    (folder / "data").mkdir()
    (_prepare_completions if shape.get("loss") == "kto" else _prepare_mixture)(shape, texts, folder)


def _prepare_mixture(shape: dict[str, Any], texts: list[str], folder: Path) -> None:
    from ladle.data.config import MixConfig
    from ladle.stages import mix

    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 4))
    source = {"name": "text", "dataset": "text.jsonl", "ratio": 1.0, "max_epochs": 1000}
    rows = 3 * shape["batch"] * shape.get("accumulation", 1)
    config = MixConfig.model_validate(
        {
            "sources": [source],
            "budget": {"sequences": rows},
            "validation": {"sequences": EVALUATED},
            "sequence_length": shape["length"],
            "workers": 1,
        }
    )
    mix.run(config, {"tokenizer": [folder / "model"], "source:text": [folder / "text.jsonl"]}, folder / "data")


def _prepare_completions(shape: dict[str, Any], texts: list[str], folder: Path) -> None:
    """Completions longer than a row, so that every one is cut to fill it."""
    from datasets import Dataset, DatasetDict

    from ladle.kto.config import KtoReferenceConfig
    from ladle.stages import kto_reference

    completion = " ".join(texts[: shape["length"]])
    rows = [
        {"prompt": f"{number}", "completion": f"{number} {completion}", "label": number % 2 == 0}
        for number in range(3 * shape["batch"])
    ]
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows)}).save_to_disk(folder / "preference")
    config = _kto_config(shape)
    inputs = {"model": [folder / "model"], "preference": [folder]}
    kto_reference.run(KtoReferenceConfig.of(config, config.seed), inputs, folder / "data")


def train(shape: dict[str, Any], folder: Path) -> int:
    """Run the stage in this process and return its peak resident bytes."""
    (folder / "out").mkdir()
    if shape.get("loss") == "kto":
        from ladle.stages import kto

        kto.run(_kto_config(shape), {"model": [folder / "model"], "reference": [folder / "data"]}, folder / "out")
    else:
        from ladle.stages import pretrain
        from ladle.training.config import PretrainConfig

        config = PretrainConfig.model_validate(_section(shape))
        pretrain.run(config, {"model": [folder / "model"], "mixture": [folder / "data"]}, folder / "out")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _kto_config(shape: dict[str, Any]) -> Any:
    from ladle.kto.config import KtoConfig

    tokens = shape["batch"] * shape["length"]
    return KtoConfig.model_validate(
        _section(shape) | {"max_length": shape["length"], "max_tokens_per_microbatch": tokens}
    )


def _section(shape: dict[str, Any]) -> dict[str, Any]:
    trainer = {
        "max_steps": 2,
        "per_device_train_batch_size": shape["batch"],
        "gradient_accumulation_steps": shape.get("accumulation", 1),
        "gradient_checkpointing": shape.get("gradient_checkpointing", False),
        "optim": shape.get("optim", "adamw_torch_fused"),
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    return {"dtype": shape.get("dtype", "float32"), "trainer": trainer}


def measure(shape: dict[str, Any], settings: dict[str, str]) -> int:
    """Return the peak of a training of the shape, in a process of its own with these environment variables."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "shape.json").write_text(pretty_json(shape))
        for what in ("--prepare", "--train"):
            done = subprocess.run(
                [sys.executable, __file__, what, str(folder)],
                capture_output=True,
                text=True,
                env=os.environ | settings,
            )
            if done.returncode != 0:
                sys.exit(done.stderr)
        return int(done.stdout.splitlines()[-1])


def main(names: list[str]) -> None:
    """Measure the shapes of these names, or all."""
    settings = {} if "--default-settings" in names else RETURNED
    names = [name for name in names if not name.startswith("--")]
    bare = measure(BARE, settings)
    print(f"bare process: {bare / MEGABYTE:,.0f} MB")
    ratios = {}
    for name in names or SHAPES:
        shape = SHAPES[name]
        measured, estimated = measure(shape, settings) - bare, estimate(shape)
        ratios[name] = round(estimated / measured, 4)
        print(
            f"{name:<48} measured {measured / MEGABYTE:>6,.0f} MB, estimated {estimated / MEGABYTE:>6,.0f} MB, "
            f"{estimated / measured - 1:+.1%}",
            flush=True,
        )
    print(json.dumps({"name": "memory_estimate", "ratios": ratios, "runs": 1}))


if __name__ == "__main__":
    if sys.argv[1:2] in (["--prepare"], ["--train"]):
        place = Path(sys.argv[2])
        wanted = json.loads((place / "shape.json").read_text())
        print(prepare(wanted, place) if sys.argv[1] == "--prepare" else train(wanted, place))
    else:
        main(sys.argv[1:])
