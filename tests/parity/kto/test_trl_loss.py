"""Ladle's KTO loss and gradients against TRL's trainer on the same batch and pairs.

Tolerances: the losses are sums of float32 log-probabilities of a few hundred tokens, whose rounding is about 1e-7 of
their size, so 1e-6 on a loss of about 0.5; gradients of two float32 computations of different order agree to about
1e-5 (relative L2), 2e-5 allowed.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from ladle.training.kto_loss import KtoWeights, completion_logps, kto_loss, reference_point
from tests.tiny_models import make_model, make_tokenizer

WEIGHTS = KtoWeights(beta=0.1, desirable=1.3, undesirable=0.7)


def preference_rows(num_rows: int, all_true: bool) -> Dataset:
    rows = [
        {
            "prompt": f"Question: {index} plus {index * 3 % 7}?\nAnswer: ",
            "completion": f"{index}+{index * 3 % 7}={index + index * 3 % 7}." * (1 + index % 3),
            "label": all_true or index % 3 != 0,
        }
        for index in range(num_rows)
    ]
    return Dataset.from_list(rows)


@pytest.mark.slow
@pytest.mark.parametrize("all_true", [False, True], ids=["mixed", "single label"])
@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_loss_and_gradients_equal_trls(shape: str, all_true: bool, tmp_path: Path):
    tokenizer = make_tokenizer()
    reference = make_model(shape, len(tokenizer))
    policy = copy.deepcopy(reference)
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    ours = copy.deepcopy(policy)
    arguments = KTOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        beta=WEIGHTS.beta,
        desirable_weight=WEIGHTS.desirable,
        undesirable_weight=WEIGHTS.undesirable,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=256,
    )
    trainer = KTOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments,
        train_dataset=preference_rows(8, all_true),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    policy.train()
    theirs = trainer._compute_loss(policy, batch, return_outputs=False)
    theirs.backward()

    matched = {
        "input_ids_BT": batch["input_ids"],
        "attention_mask_BT": batch["attention_mask"],
        "is_completion_BT": batch["completion_mask"].bool(),
    }
    kl = {
        "input_ids_BT": batch["KL_input_ids"],
        "attention_mask_BT": batch["KL_attention_mask"],
        "is_completion_BT": batch["KL_completion_mask"].bool(),
    }
    with torch.no_grad():
        kl_ratio_B = completion_logps(ours, **kl) - completion_logps(reference, **kl)
        ref_logp_B = completion_logps(reference, **matched)
    ratio_B = completion_logps(ours, **matched) - ref_logp_B
    z0 = reference_point(kl_ratio_B)
    loss = kto_loss(ratio_B, torch.as_tensor(batch["label"], dtype=torch.bool), z0, WEIGHTS).mean()
    loss.backward()

    assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    gradient, their_gradient = (
        torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])
        for model in (ours, policy)
    )
    assert their_gradient.norm() > 0
    assert ((gradient - their_gradient).norm() / their_gradient.norm()).item() <= 2e-5
