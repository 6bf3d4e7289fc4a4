"""KTO on the shared Trainer: one optimizer step at a time, repacked.

Every process is given the rows of the whole step. It puts the mismatched pairs into bins of similar lengths, takes its
share of the bins without gradient, and z0 follows from the sums of all; then the same with the completions themselves,
whose loss and gradients the head gives in one pass. `per_device_train_batch_size` and `gradient_accumulation_steps`
therefore say how many rows make a step (and, with `kl_scope: microbatch`, which of them share a z0), not what is held
in memory: that is `max_tokens_per_microbatch`.

The loss of a step is the mean over its rows, also of a last step that is not full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ladle.kto.data import Bin, KtoExamples, make_bin, plan_bins
from ladle.kto.loss import KtoWeights, kto_loss, reference_points, switch_randomness_off
from ladle.kto.pairs import KtoPlan
from ladle.kto.reference import KtoReference
from ladle.training.order import RowOrder
from ladle.training.processes import reduce_tensor
from ladle.training.trainer import LadleTrainer

Pair = tuple[int, int]
"""(example whose prompt, example whose completion)."""


COUNTS = ("count/chosen", "count/rejected", "tokens/chosen", "tokens", "count/kl", "steps")
DIVISORS = {
    "rewards/chosen": "count/chosen",
    "rewards/rejected": "count/rejected",
    "logps/chosen": "count/chosen",
    "logps/rejected": "count/rejected",
    "nll/chosen": "tokens/chosen",
    "entropy": "tokens",
    "completion_length": "count",
    "kl": "count/kl",
    "z0": "steps",
}
"""What each sum is divided by; `count` is all completions."""


class KtoMetrics:
    """The figures of a training, summed over steps and processes and logged as means under TRL's names.

    rewards: β times the log-ratio, a completion; logps: log π of a completion; nll/chosen and entropy: nats a token;
    kl: mean log-ratio of mismatched pairs, before it is held at 0; z0: after.
    """

    def __init__(self) -> None:
        self.sums = dict.fromkeys([*DIVISORS, *COUNTS], 0.0)

    def add(
        self,
        beta: float,
        is_desirable_B: torch.Tensor,
        logp_B: torch.Tensor,
        ratio_B: torch.Tensor,
        entropy_B: torch.Tensor,
        size_B: torch.Tensor,
    ) -> None:
        """Count the completions of one bin."""
        for label, chosen_B in (("chosen", is_desirable_B), ("rejected", ~is_desirable_B)):
            self.sums[f"count/{label}"] += int(chosen_B.sum())
            self.sums[f"rewards/{label}"] += beta * ratio_B[chosen_B].sum().item()
            self.sums[f"logps/{label}"] += logp_B[chosen_B].sum().item()
        self.sums["nll/chosen"] -= logp_B[is_desirable_B].sum().item()
        self.sums["tokens/chosen"] += int(size_B[is_desirable_B].sum())
        self.sums["tokens"] += int(size_B.sum())
        self.sums["completion_length"] += int(size_B.sum())
        self.sums["entropy"] += entropy_B.sum().item()

    def add_step(self, kl_sum: float, kl_count: int, z0: float) -> None:
        """Count a step's mismatched pairs (figures of all processes, so on the first alone)."""
        self.sums["kl"] += kl_sum
        self.sums["count/kl"] += kl_count
        self.sums["z0"] += z0
        self.sums["steps"] += 1

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes since the last call, and start again."""
        values = torch.tensor(list(self.sums.values()), dtype=torch.float64, device=accelerator.device)
        values = reduce_tensor(accelerator, values, "sum")
        total = dict(zip(self.sums, values.tolist(), strict=True))
        self.sums = dict.fromkeys(self.sums, 0.0)
        total["count"] = total["count/chosen"] + total["count/rejected"]
        means = {name: total[name] / total[divisor] for name, divisor in DIVISORS.items() if total[divisor]}
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means | {name: total[name] for name in ("count/chosen", "count/rejected")}


@dataclass(frozen=True)
class KtoData:
    """Examples with what was decided and computed about them beforehand."""

    examples: KtoExamples
    plan: KtoPlan
    reference: KtoReference


@dataclass(frozen=True)
class KtoOptions:
    """How the loss is computed.

    Attributes:
        weights: β, λ_D, λ_U.
        kl_scope: rows that share a z0.
        budget: tokens of one forward pass, padding included where there is any.
        packed: sequences of a forward pass are one row.
    """

    weights: KtoWeights
    kl_scope: Literal["step", "microbatch", "none"]
    budget: int
    packed: bool


@dataclass(frozen=True)
class _Step:
    """Rows of one optimizer step, the same on every process, and the group of each that shares a z0."""

    rows: np.ndarray
    group_of: np.ndarray
    epoch: int


class KtoTrainer(LadleTrainer):
    """Trainer whose loss is KTO's.

    Args:
        data: what to train on.
        eval_data: what to evaluate on, where there is any.
        options: how the loss is computed.
        pad_id: what padding is filled with.
    """

    def __init__(
        self,
        *args: Any,
        data: KtoData,
        options: KtoOptions,
        pad_id: int,
        eval_data: KtoData | None = None,
        **kwargs: Any,
    ) -> None:
        rows = range(len(data.examples))
        super().__init__(*args, train_dataset=rows, eval_dataset=eval_data and rows, rows_are_shuffled=False, **kwargs)
        self.data, self.eval_data, self.options, self.pad_id = data, eval_data, options, pad_id
        self.metrics = KtoMetrics()

    # The rows of a step.

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of row numbers; it is the same on every process, for each sees the whole step."""
        self.order = _WholeRows(
            len(self.data.examples),
            self._train_batch_size * self.accelerator.num_processes,
            self._data_seed(),
            rows_are_shuffled=False,
            drop_last=self.args.dataloader_drop_last,
        )
        return DataLoader(cast(Any, self.train_dataset), batch_sampler=self.order, collate_fn=list)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[int]], num_batches: int, device: Any
    ) -> tuple[list, None]:
        """Return the whole step in place of its last microbatch; the others are empty."""
        microbatches = list(islice(epoch_iterator, num_batches))
        rows = np.array([row for microbatch in microbatches for row in microbatch])
        group_of = np.repeat(np.arange(len(microbatches)), [len(microbatch) for microbatch in microbatches])
        if self.options.kl_scope != "microbatch":
            group_of = np.zeros_like(group_of)
        return [*[None] * (len(microbatches) - 1), _Step(rows, group_of, self.order.epoch)], None

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the Trainer's estimate counts neither the pass without gradient nor the head."""
        return 0

    # The step.

    def training_step(
        self, model: torch.nn.Module, inputs: _Step | None, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run the step's passes and return this process's part of its loss (their mean is the step's)."""
        if inputs is None:
            return torch.zeros((), device=self.args.device)
        switch_randomness_off(model)
        z0_G = self._reference_points(self.data, inputs)
        pairs = [(row, row) for row in inputs.rows.tolist()]
        bins = self._my_bins(self.data.examples, pairs)
        total = torch.zeros((), device=self.args.device)
        for number, sequences in enumerate(bins):
            # processes exchange gradients in the step's last backward pass alone
            is_last = number == len(bins) - 1
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            synchronised = is_last or self.is_deepspeed_enabled
            with nullcontext() if synchronised else self.accelerator.no_sync(model):
                # where there are fewer rows than processes, one without a row takes part with weight 0
                one_bin = self._make_bin(self.data.examples, pairs, sequences or [0])
                loss = self._loss(model, self.data, inputs, one_bin, z0_G, weight=float(bool(sequences)))
                self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))
            total += loss.detach()
        self.guard.note_loss(total.item())
        return total

    def _loss(
        self, model: torch.nn.Module, data: KtoData, step: _Step, one_bin: Bin, z0_G: torch.Tensor, weight: float = 1.0
    ) -> torch.Tensor:
        """Return a bin's share of the step's mean loss, times the processes, over which gradients are averaged."""
        device = z0_G.device
        places = np.array(one_bin.sequences)
        rows = step.rows[places]
        reference_B = torch.from_numpy(data.reference.logp_N[rows]).to(device)
        is_desirable_B = torch.from_numpy(data.examples.is_desirable[rows]).to(device)
        z0_B = z0_G[torch.from_numpy(step.group_of[places]).to(device)]
        scale = weight * self.accelerator.num_processes / len(step.rows)

        def objective(logp_b: torch.Tensor, which: slice) -> torch.Tensor:
            ratio_b = logp_b - reference_B[which]
            return scale * kto_loss(ratio_b, is_desirable_B[which], z0_B[which], self.options.weights)

        loss, logp_B, entropy_B = model(bin=one_bin, objective=objective)
        if weight:
            beta, size_B = self.options.weights.beta, torch.tensor(one_bin.sizes)
            self.metrics.add(beta, is_desirable_B, logp_B, logp_B - reference_B, entropy_B, size_B)
        return loss

    @torch.no_grad()
    def _reference_points(self, data: KtoData, step: _Step) -> torch.Tensor:
        """Return z0 of each group of the step, float32, shape (G,).

        Each process adds the log-ratios of its share of the mismatched pairs to their groups' sums.
        """
        num_groups = int(step.group_of[-1]) + 1
        sums = torch.zeros(2, num_groups, device=self.args.device)
        if self.options.kl_scope != "none":
            chosen = data.plan.estimates_kl(step.epoch)[step.rows]
            rows, group_of = step.rows[chosen], step.group_of[chosen]
            pairs = list(zip(rows.tolist(), data.plan.partners(step.epoch)[rows].tolist(), strict=True))
            reference = data.reference.kl_logp_PN[data.plan.pairing_of(step.epoch)]
            for sequences in filter(None, self._my_bins(data.examples, pairs)):
                one_bin = self._make_bin(data.examples, pairs, sequences)
                ratio_B = self.policy(bin=one_bin) - torch.from_numpy(reference[rows[sequences]]).to(sums.device)
                for place, ratio in zip(sequences, ratio_B.unbind(), strict=True):
                    sums[0, group_of[place]] += ratio
                    sums[1, group_of[place]] += 1
            sums = reduce_tensor(self.accelerator, sums, "sum")
        z0_G = reference_points(sums[0], sums[1])
        if self.accelerator.is_main_process:
            self.metrics.add_step(sums[0].sum().item(), int(sums[1].sum()), z0_G.mean().item())
        return z0_G

    def _my_bins(self, examples: KtoExamples, pairs: list[Pair]) -> list[list[int]]:
        """Return this process's share of the bins; each process has the same number, so that they keep in step."""
        if not pairs:
            return []
        prompts, completions = np.array(pairs).T
        processes, options = self.accelerator.num_processes, self.options
        bins = plan_bins(examples.lengths(prompts, completions), options.budget, processes, options.packed)
        return bins[self.accelerator.process_index :: processes]

    def _make_bin(self, examples: KtoExamples, pairs: list[Pair], sequences: list[int]) -> Bin:
        return make_bin(examples, pairs, sequences, self.pad_id, self.options.packed).to(self.args.device)

    @cached_property
    def policy(self) -> PreTrainedModel:
        """The model under whatever wraps it (asking accelerate takes milliseconds)."""
        return cast(PreTrainedModel, self.accelerator.unwrap_model(self.model))

    # Evaluation.

    @torch.no_grad()
    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Return and log loss and metrics of the evaluation split, its pairs those of epoch 0, z0 over all of it."""
        assert self.eval_data is not None
        data, training_metrics, self.metrics = self.eval_data, self.metrics, KtoMetrics()
        self.model.eval()
        count = len(data.examples)
        step = _Step(np.arange(count), np.zeros(count, dtype=int), epoch=0)
        z0_G = self._reference_points(data, step)
        pairs = [(row, row) for row in range(count)]
        loss = torch.zeros((), device=self.args.device)
        for sequences in filter(None, self._my_bins(data.examples, pairs)):
            loss += self._loss(self.policy, data, step, self._make_bin(data.examples, pairs, sequences), z0_G)
        loss = reduce_tensor(self.accelerator, loss, "mean")
        figures = {"loss": loss.item(), **self.metrics.take(self.accelerator)}
        self.metrics = training_metrics
        figures = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    # The log, and what resuming needs of it.

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the KTO metrics since the last log line beside the Trainer's own."""
        super().log(logs | (self.metrics.take(self.accelerator) if "loss" in logs else {}), *args, **kwargs)

    def begin_step(self) -> None:
        """Remember the metrics, so that the step can be skipped in them."""
        super().begin_step()
        self._sums_before_step = dict(self.metrics.sums)

    def skip_step(self) -> None:
        """Skip the step in the metrics too."""
        super().skip_step()
        self.metrics.sums = self._sums_before_step

    def progress(self) -> dict[str, Any]:
        """Return the Trainer's, and the metrics summed since the last log line."""
        return super().progress() | {"kto": self.metrics.sums}

    def restore_progress(self, saved: dict[str, Any]) -> None:
        """Restore the metrics too."""
        super().restore_progress(saved)
        self.metrics.sums = saved["kto"]


class _WholeRows(RowOrder):
    """Batches that are the same on every process, so that none is skipped for another process."""

    def start_at(self, batch: int, num_processes: int = 1) -> None:
        """Let the next iteration give placeholders up to the batch, counted over one process."""
        super().start_at(batch // num_processes)
