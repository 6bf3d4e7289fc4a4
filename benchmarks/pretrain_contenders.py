"""One contender of bench_pretrain.py: a training that takes one optimizer step for each line it reads.

    python benchmarks/pretrain_contenders.py {ladle|trainer} VOCAB_SIZE STEPS THREADS

It prints a JSON object when it has taken its first step, one after each further step (seconds), and at the end one with
its peak resident memory and losses. Both contenders train the same model from the same weights on the same rows.

The shape is DeepSeek-V3's at a hidden size that fits a small machine, its experts so wide that at 152k tokens the head
is half of the active compute, as it is in OpenSeek-1.4B (49 %).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)

from ladle.models.probe import probe
from ladle.training.arguments import make_arguments
from ladle.training.config import PretrainConfig
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.loop import Training
from ladle.training.parallel import join_world
from ladle.training.pretrain import PretrainTask

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 3072,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 6,
    "first_k_dense_replace": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 16,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "tie_word_embeddings": True,
}
SEQUENCE_LENGTH = 2560
DOCUMENT_LENGTH = 256
"""Mean length of the documents packed into a row."""


def make_model(vocab_size: int) -> torch.nn.Module:
    """Return the model with the weights of seed 0."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", vocab_size=vocab_size, **SHAPE))


def make_rows(vocab_size: int, num_rows: int) -> list[dict[str, Any]]:
    """Return packed rows of random tokens, documents of random length."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(num_rows):
        tokens = rng.integers(2, vocab_size, SEQUENCE_LENGTH)
        starts = rng.random(SEQUENCE_LENGTH) < 1 / DOCUMENT_LENGTH
        starts[0] = True
        first = np.maximum.accumulate(np.where(starts, np.arange(SEQUENCE_LENGTH), 0))
        labels = np.where(starts, -100, tokens)
        rows.append({"input_ids": tokens, "position_ids": np.arange(SEQUENCE_LENGTH) - first, "labels": labels})
    return rows


class StepClock:
    """Waits for a line before each step but the first, and prints what the step took, its data included."""

    def __init__(self) -> None:
        self.started: float | None = None

    def end_step(self) -> None:
        """Report the step that ended and wait for a line to take another."""
        seconds = None if self.started is None else time.perf_counter() - self.started
        print(json.dumps({"seconds": seconds}), flush=True)
        sys.stdin.readline()
        self.started = time.perf_counter()


class StepOnDemand(TrainerCallback):
    """The plain Trainer's steps on demand."""

    def __init__(self) -> None:
        self.clock = StepClock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the next step."""
        self.clock.end_step()


class TrainingOnDemand(Training):
    """Ladle's steps on demand."""

    clock = StepClock()

    def _log_evaluate_save(self, stops: bool) -> None:
        super()._log_evaluate_save(stops)
        self.clock.end_step()


def train(way: str, vocab_size: int, steps: int, folder: Path) -> list[float]:
    """Train Ladle's way or the plain Trainer's, with equal arguments, and return the losses."""
    values = {
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    config = PretrainConfig.model_validate({"trainer": values})
    arguments = make_arguments(config, folder)
    model, rows = make_model(vocab_size), make_rows(vocab_size, steps)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0})), pad_token="<pad>")
    if way == "ladle":
        model.config.use_cache = False
        use_linear_cross_entropy(model, probe(model))
        world, task = join_world(), PretrainTask(rows)
        training = TrainingOnDemand(config, task, model, tokenizer, world, arguments, 1e-3)
        training.run()
        return [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row["input_ids"]} for row in rows],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepOnDemand())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def peak_memory_mib() -> float:
    """Return this process's largest resident memory so far."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Train, step by step."""
    way, vocab_size, steps, threads = sys.argv[1], *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        losses = train(way, vocab_size, steps, Path(folder))
    print(json.dumps({"memory_mib": peak_memory_mib(), "losses": losses}), flush=True)


if __name__ == "__main__":
    main()
