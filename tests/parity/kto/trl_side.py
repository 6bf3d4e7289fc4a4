"""TRL's KTOTrainer and Ladle's on the same rows, in the same order and with the same pairs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from ladle.kto.config import KtoConfig
from ladle.kto.data import KtoExamples, tokenize_examples
from ladle.kto.loss import KtoWeights, use_kto_forward
from ladle.kto.pairs import KtoPlan
from ladle.kto.reference import KtoReference, ReferencePass
from ladle.kto.task import KtoData, KtoOptions, KtoTask
from ladle.training.arguments import make_arguments
from ladle.training.config import TrainerArguments
from ladle.training.loop import Training
from ladle.training.parallel import World
from tests.tiny_models import make_tokenizer

WEIGHTS = KtoWeights(beta=0.1, desirable=1.3, undesirable=0.7)
PAD_ID = 1


def preference_rows(num_rows: int, all_true: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Question: {index} plus {index * 3 % 7}?\nAnswer: ",
            "completion": f"{index}+{index * 3 % 7}={index + index * 3 % 7}." * (1 + index % 3),
            "label": all_true or index % 3 != 0,
        }
        for index in range(num_rows)
    ]


class TrlPlan(KtoPlan):
    """Rows in their own order, each paired with the one before it in its microbatch, as TRL's rotation does."""

    batch_size = 4

    def partners(self, epoch: int) -> np.ndarray:
        rows = np.arange(self.num_rows)
        starts = rows // self.batch_size * self.batch_size
        ends = np.minimum(starts + self.batch_size, self.num_rows)
        return np.where(rows == starts, ends - 1, rows - 1)

    def used_rows(self, epoch: int) -> np.ndarray:
        return np.arange(self.num_rows)


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def run_trl(model: PreTrainedModel, rows: list[dict], out: Path, peft: bool, **arguments: Any) -> KTOTrainer:
    """Return TRL's trainer, ready to train."""
    config = KTOConfig(
        output_dir=str(out),
        beta=WEIGHTS.beta,
        desirable_weight=WEIGHTS.desirable,
        undesirable_weight=WEIGHTS.undesirable,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=256,
        router_aux_loss_coef=None,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        **arguments,
    )
    return KTOTrainer(
        model=model,
        ref_model=None if peft else copy.deepcopy(model),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
        peft_config=lora() if peft else None,
    )


def plan_of(examples: KtoExamples, batch_size: int, epochs: int = 1) -> KtoPlan:
    plan = TrlPlan(examples.prompt_of, epochs, 42, 42, pairs_per_epoch=False, kl_fraction=1.0)
    object.__setattr__(plan, "batch_size", batch_size)
    return plan


def make_ladle(
    model: PreTrainedModel,
    rows: list[dict],
    out: Path,
    peft: bool = False,
    kl_scope: str = "microbatch",
    budget: int = 512,
    plan: KtoPlan | None = None,
    reference: KtoReference | None = None,
    nll_weight: float = 0.0,
    **arguments: Any,
) -> Training:
    """Return Ladle's training, ready to run, on the rows in the order of the data, as TRL takes them."""
    tokenizer, world = make_tokenizer(), World(0, 1, torch.device("cpu"))
    examples, _ = tokenize_examples(rows, tokenizer, 256)
    plan = plan or plan_of(examples, arguments["per_device_train_batch_size"])
    packed = use_kto_forward(model)
    reference = reference or ReferencePass(model, packed, PAD_ID, budget).run(examples, plan, out / "reference", world)
    policy: Any = get_peft_model(model, lora()) if peft else model
    values = {"save_strategy": "no", "logging_steps": 1, "report_to": "none"} | arguments
    config = KtoConfig(trainer=TrainerArguments(**values))
    options = KtoOptions(WEIGHTS, kl_scope, budget, packed, nll_weight)  # type: ignore[arg-type]
    task = KtoTask(KtoData(examples, plan, reference), None, options, PAD_ID)
    task.rows_are_shuffled = True
    made = make_arguments(config, out)
    return Training(config, task, policy, tokenizer, world, made)


def gradient_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])
