"""The contenders of bench_kto: TRL's KTOTrainer at two settings and Ladle, on the same model, rows and pairs.

Each trains for some epochs from the same weights and reports when each epoch ended, the reference pass included and
tokenizing left out. Run as a program, it does one short training and prints the process's peak memory as JSON.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from ladle.kto.config import KtoConfig
from ladle.kto.data import KtoExamples
from ladle.kto.loss import KtoWeights, prepare_policy, use_kto_forward
from ladle.kto.pairs import KtoPlan
from ladle.kto.reference import ReferencePass
from ladle.kto.task import KtoData, KtoOptions, KtoTask
from ladle.models.tokenizer import train_tokenizer
from ladle.training.arguments import make_arguments
from ladle.training.config import TrainerArguments
from ladle.training.loop import Training
from ladle.training.parallel import join_world

PROMPT_DECILES = (23, 37, 42, 47, 53, 57, 63, 69, 78, 92, 188)
COMPLETION_DECILES = (27, 63, 78, 89, 102, 115, 129, 145, 166, 197, 413)
"""Tokens of GSM8K's 1,319 test problems and solutions under OpenSeek's vocabulary."""
MAX_LENGTH = 1024


@dataclass(frozen=True)
class Workload:
    """What is trained on: a step's rows, all rows, and how much shorter than GSM8K's they are."""

    vocab_size: int
    hidden_size: int
    rows_per_step: int
    rows: int
    shorter: int


WORKLOADS = {"4k": Workload(4_096, 128, 16, 16, 1), "152k": Workload(151_936, 64, 4, 4, 2)}
"""By vocabulary; the large one's are cut down until TRL's default takes seconds, not minutes, an epoch."""
COMMON = {"num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 2_048}
SHAPES: dict[str, dict[str, Any]] = {
    "moe": {
        **COMMON, "model_type": "deepseek_v3", "intermediate_size": 256, "moe_intermediate_size": 64,
        "first_k_dense_replace": 1, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": None, "kv_lora_rank": 32,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
    },
    "dense": {**COMMON, "model_type": "qwen3", "intermediate_size": 384, "num_key_value_heads": 2, "head_dim": 32},
}  # fmt: skip
PAD_ID = 1
CLOCK = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter
"""BENCH_CLOCK=cpu counts the process's CPU seconds, which other work on the machine changes less than the clock's."""
Ends = list[float]
"""Seconds from the start at which each epoch ended."""


def quieten() -> None:
    """Keep libraries' own messages and progress bars out of the benchmark's output."""
    disable_progress_bars()
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)


def make_rows(work: Workload, count: int, seed: int) -> list[dict[str, Any]]:
    """Return rows of token ids whose lengths follow the deciles, every quantile once, and alternating labels."""
    random = np.random.default_rng(seed)
    quantile = (np.arange(count) + 0.5) / count
    prompts, completions = (
        random.permutation(np.interp(quantile, np.linspace(0, 1, 11), deciles).astype(int) // work.shorter)
        for deciles in (PROMPT_DECILES, COMPLETION_DECILES)
    )
    return [
        {
            "prompt_ids": random.integers(2, work.vocab_size, prompt).tolist(),
            "completion_ids": random.integers(2, work.vocab_size, completion).tolist(),
            "label": index % 2 == 0,
        }
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def make_model(shape: str, vocabulary: str) -> PreTrainedModel:
    """Return the benchmark's model with random weights, always the same."""
    torch.manual_seed(0)
    fields, work = dict(SHAPES[shape]), WORKLOADS[vocabulary]
    config = AutoConfig.for_model(
        fields.pop("model_type"), vocab_size=work.vocab_size, hidden_size=work.hidden_size, bos_token_id=0,
        eos_token_id=0, pad_token_id=PAD_ID, **fields,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


class _EpochEnds(TrainerCallback):
    def __init__(self) -> None:
        self.ends: Ends = []

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(CLOCK())


def _any_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a tokenizer that the trainers ask for and the benchmark does not use"], 300)


def train_with_trl(model: PreTrainedModel, rows: list[dict], epochs: int, out: Path, **arguments: Any) -> Ends:
    """Train with TRL's KTOTrainer, which makes its pairs in microbatches of `per_device_train_batch_size`."""
    config = KTOConfig(
        output_dir=str(out), num_train_epochs=epochs, use_cpu=not torch.cuda.is_available(), bf16=False,
        report_to="none", disable_tqdm=True, save_strategy="no", max_length=MAX_LENGTH, learning_rate=1e-5, **arguments,
    )  # fmt: skip
    batch = config.per_device_train_batch_size
    partners = [row // batch * batch + (row - 1) % batch for row in range(len(rows))]
    with_pairs = [
        {**row, "KL_completion_ids": rows[partner]["completion_ids"]}
        for row, partner in zip(rows, partners, strict=True)
    ]
    precomputing = 0.0
    own = KTOTrainer._precompute_ref_logps

    def timed(self: KTOTrainer, *args: Any) -> Any:
        nonlocal precomputing
        started = CLOCK()
        result = own(self, *args)
        precomputing += CLOCK() - started
        return result

    KTOTrainer._precompute_ref_logps = timed
    reference = None if config.precompute_ref_log_probs else copy.deepcopy(model)
    dataset = Dataset.from_list(with_pairs)
    prepare, KTOTrainer._prepare_dataset = KTOTrainer._prepare_dataset, lambda self, dataset, *rest: dataset
    try:
        trainer = KTOTrainer(
            model=model, ref_model=reference, args=config, train_dataset=dataset, processing_class=_any_tokenizer()
        )
    finally:
        KTOTrainer._precompute_ref_logps, KTOTrainer._prepare_dataset = own, prepare
    clock = _EpochEnds()
    trainer.add_callback(clock)
    started = CLOCK() - precomputing
    trainer.train()
    return [end - started for end in clock.ends]


class _RotatedPlan(KtoPlan):
    """TRL's pairs, for microbatches of `rows_per_step`."""

    def partners(self, epoch: int) -> np.ndarray:
        rows = np.arange(self.num_rows)
        return rows // self.rows_per_step * self.rows_per_step + (rows - 1) % self.rows_per_step


def train_with_ladle(
    model: PreTrainedModel, rows: list[dict], epochs: int, out: Path, rows_per_step: int, new_pairs: bool, budget: int
) -> Ends:
    """Train with Ladle, on the pairs of TRL's default, or on new pairs each epoch."""
    examples = flatten(rows)
    kind = KtoPlan if new_pairs else _RotatedPlan
    plan = kind(examples.prompt_of, epochs, 42, 42, new_pairs, kl_fraction=1.0, rows_per_step=rows_per_step // 2)
    world = join_world()
    packed = use_kto_forward(model, prepare_policy(model.to(world.device)))
    started = CLOCK()
    reference = ReferencePass(model.eval(), packed, PAD_ID, budget).run(examples, plan, out / "reference", world)
    values = {
        "num_train_epochs": epochs, "per_device_train_batch_size": rows_per_step // 2, "gradient_accumulation_steps": 2,
        "save_strategy": "no", "learning_rate": 1e-5,
    }  # fmt: skip
    config = KtoConfig(trainer=TrainerArguments(**values))
    options = KtoOptions(KtoWeights(0.1, 1.0, 1.0), "step", budget, packed)
    task = KtoTask(KtoData(examples, plan, reference), None, options, PAD_ID)
    arguments = make_arguments(config, out)
    training: Any = _TimedTraining(config, task, model, _any_tokenizer(), world, arguments)
    training.run()
    return [end - started for end in training.ends]


class _TimedTraining(Training):
    """Notes when each epoch ended."""

    def _log_evaluate_save(self, stops: bool) -> None:
        super()._log_evaluate_save(stops)
        if self.state.global_step % self.order.steps_per_epoch == 0:
            self.ends = [*getattr(self, "ends", []), CLOCK()]


def flatten(rows: list[dict]) -> KtoExamples:
    """Return rows of token ids as Ladle's examples."""

    def flat(name: str) -> tuple[np.ndarray, np.ndarray]:
        bounds = np.cumsum([0, *(len(row[name]) for row in rows)])
        return np.concatenate([np.array(row[name], dtype=np.int32) for row in rows]), bounds

    labels = np.array([row["label"] for row in rows])
    return KtoExamples(*flat("prompt_ids"), *flat("completion_ids"), labels, np.arange(len(rows)), MAX_LENGTH)


def _trl_default(*args: Any, rows_per_step: int, budget: int) -> Ends:
    return train_with_trl(
        *args,
        per_device_train_batch_size=rows_per_step // 2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
    )


def _trl_best(*args: Any, rows_per_step: int, budget: int) -> Ends:
    return train_with_trl(
        *args,
        per_device_train_batch_size=rows_per_step,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=rows_per_step,
    )


def _trl_best_small(*args: Any, rows_per_step: int, budget: int) -> Ends:
    return train_with_trl(
        *args,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=rows_per_step // 2,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=2,
    )


CONTENDERS: dict[str, Callable[..., Ends]] = {
    "trl_default": _trl_default,
    "trl_best": _trl_best,
    "trl_best_small": _trl_best_small,
    "ladle": partial(train_with_ladle, new_pairs=False),
    "ladle_new_pairs": partial(train_with_ladle, new_pairs=True),
}


def run(contender: str, shape: str, vocabulary: str, num_rows: int, epochs: int, seed: int, budget: int) -> Ends:
    """Train one contender from fresh weights and return the seconds at which each epoch ended."""
    work = WORKLOADS[vocabulary]
    rows = make_rows(work, num_rows, seed)
    with tempfile.TemporaryDirectory() as out:
        model, rest = make_model(shape, vocabulary), {"rows_per_step": work.rows_per_step, "budget": budget}
        return CONTENDERS[contender](model, rows, epochs, Path(out), **rest)


def _memory_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    quieten()
    before = _memory_mib("VmRSS")
    job = json.loads(sys.argv[1])
    run(**job)
    print(json.dumps({"libraries_mib": before, "peak_mib": _memory_mib("VmHWM")}))
