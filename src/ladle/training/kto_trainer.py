"""KTO on the shared Trainer.

Reference log-probabilities are computed once before training, and z0 over each microbatch, as TRL defines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ladle.log import progress
from ladle.training.kto_data import KtoExample, pad_sequences
from ladle.training.kto_loss import KtoWeights, completion_logps, kto_loss, reference_point
from ladle.training.processes import reduce_tensor
from ladle.training.trainer import LadleTrainer

Row = dict[str, Any]


@torch.no_grad()
def add_reference_logps(
    model: PreTrainedModel, examples: Sequence[KtoExample], pad_id: int, batch_size: int
) -> list[Row]:
    """Return the examples as rows for training, each with log π_ref of its own and of its mismatched completion.

    `model` is the policy before its first step, which is the reference. Rows of similar length share a batch.
    """
    model.eval()
    rows: list[Row] = [{"example": example} for example in examples]
    by_length = sorted(rows, key=lambda row: len(row["example"].prompt_ids) + len(row["example"].completion_ids))
    with progress(len(rows), "reference log-probs", "examples") as bar:
        for start in range(0, len(rows), batch_size):
            batch = by_length[start : start + batch_size]
            for name, inputs in zip(("ref_logp", "ref_kl_logp"), _matched_and_kl(batch, pad_id), strict=True):
                logps = completion_logps(model, **_to_model(inputs, model))
                for row, logp in zip(batch, logps.tolist(), strict=True):
                    row[name] = logp
            bar.advance(len(batch))
    return rows


class KtoTrainer(LadleTrainer):
    """Trainer whose loss is KTO's."""

    def __init__(self, *args: Any, weights: KtoWeights, pad_id: int, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=lambda rows: collate_kto(rows, pad_id), **kwargs)
        # the loss is a mean over examples, which Trainer is to divide by the accumulation steps
        self.model_accepts_loss_kwargs = False
        self.weights = weights
        self._sums: dict[str, list[float]] = {}

    def compute_loss(
        self, model: PreTrainedModel, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the mean KTO loss of a microbatch (scalar)."""
        unwrapped = cast(PreTrainedModel, self.accelerator.unwrap_model(model))
        with torch.no_grad():
            kl_ratio_B = completion_logps(unwrapped, **inputs["kl"]) - inputs["ref_kl_logp"]
        z0 = reduce_tensor(self.accelerator, reference_point(kl_ratio_B), "mean")
        ratio_B = completion_logps(unwrapped, **inputs["matched"]) - inputs["ref_logp"]
        self._count(ratio_B.detach() * self.weights.beta, inputs["is_desirable"], z0)
        return kto_loss(ratio_B, inputs["is_desirable"], z0, self.weights).mean()

    def _count(self, reward_B: torch.Tensor, is_desirable_B: torch.Tensor, z0: torch.Tensor) -> None:
        self._sums.setdefault("z0", []).append(z0.item())
        for name, chosen_B in (("rewards/chosen", is_desirable_B), ("rewards/rejected", ~is_desirable_B)):
            self._sums.setdefault(name, []).extend(reward_B[chosen_B].tolist())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the means of the KTO metrics since the last log beside the Trainer's own."""
        means = {name: sum(values) / len(values) for name, values in self._sums.items() if values}
        self._sums.clear()
        super().log(logs | means, *args, **kwargs)


def collate_kto(rows: Sequence[Row], pad_id: int) -> Row:
    """Return the matched and the mismatched batch, labels and reference log-probabilities (float32, shape (B,))."""
    matched, kl = _matched_and_kl(rows, pad_id)
    return {
        "matched": _named(matched),
        "kl": _named(kl),
        "is_desirable": torch.tensor([row["example"].is_desirable for row in rows]),
        "ref_logp": torch.tensor([row["ref_logp"] for row in rows]),
        "ref_kl_logp": torch.tensor([row["ref_kl_logp"] for row in rows]),
    }


def _matched_and_kl(rows: Sequence[Row], pad_id: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    examples: list[KtoExample] = [row["example"] for row in rows]
    prompts = [example.prompt_ids for example in examples]
    matched = pad_sequences(prompts, [example.completion_ids for example in examples], pad_id)
    return matched, pad_sequences(prompts, [example.kl_ids for example in examples], pad_id)


def _named(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}_BT": value for name, value in batch.items()}


def _to_model(batch: dict[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.to(model.device) for name, value in _named(batch).items()}
