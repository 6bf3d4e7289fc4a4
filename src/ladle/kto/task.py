"""KTO as a task of the training loop: one optimizer step at a time, repacked.

Every process is given the rows of the whole step. It puts the mismatched pairs into bins of similar lengths, takes its
share of the bins without gradient, and z0 follows from the sums of all; then the same with the completions themselves,
whose loss and gradients the head gives in one pass. `per_device_train_batch_size` and `gradient_accumulation_steps`
therefore say how many rows make a step (and, with `kl_scope: microbatch`, which of them share a z0), not what is held
in memory: that is `max_tokens_per_microbatch`.

The loss of a step is the mean over its rows, also of a last step that is not full; to it comes, with `nll_weight`, the
mean over its desirable rows of their negative log-likelihood a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from ladle.kto.data import Bin, KtoExamples, make_bin, plan_bins
from ladle.kto.loss import KtoWeights, kto_loss, reference_points, switch_randomness_off
from ladle.kto.pairs import KtoPlan
from ladle.kto.reference import KtoReference
from ladle.training.loop import Pass, Task, Training
from ladle.training.parallel import World

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
        self._unread: list[tuple[Callable[[torch.Tensor], None], torch.Tensor]] = []
        """What bins and steps left on the device, and what adds it up: read at once, so that a step waits once."""

    def add(
        self,
        beta: float,
        is_desirable: np.ndarray,
        sizes: list[int],
        logp_B: torch.Tensor,
        ratio_B: torch.Tensor,
        entropy_B: torch.Tensor,
    ) -> None:
        """Count the completions of one bin."""
        is_desirable_B, size_B = torch.from_numpy(is_desirable), torch.tensor(sizes)

        def count(read: torch.Tensor) -> None:
            logp_B, ratio_B, entropy_B = read
            for label, chosen_B in (("chosen", is_desirable_B), ("rejected", ~is_desirable_B)):
                self.sums[f"count/{label}"] += int(chosen_B.sum())
                self.sums[f"rewards/{label}"] += beta * ratio_B[chosen_B].sum().item()
                self.sums[f"logps/{label}"] += logp_B[chosen_B].sum().item()
            self.sums["nll/chosen"] -= logp_B[is_desirable_B].sum().item()
            self.sums["tokens/chosen"] += int(size_B[is_desirable_B].sum())
            self.sums["tokens"] += sum(sizes)
            self.sums["completion_length"] += sum(sizes)
            self.sums["entropy"] += entropy_B.sum().item()

        self._unread.append((count, torch.stack([logp_B, ratio_B, entropy_B])))

    def add_step(self, kl_sum_G: torch.Tensor, count_G: torch.Tensor, z0_G: torch.Tensor) -> None:
        """Count a step's mismatched pairs (figures of all processes, so on the first alone)."""

        def count(read: torch.Tensor) -> None:
            kl_sum_G, count_G, z0_G = read
            self.sums["kl"] += kl_sum_G.sum().item()
            self.sums["count/kl"] += int(count_G.sum())
            self.sums["z0"] += z0_G.mean().item()
            self.sums["steps"] += 1

        self._unread.append((count, torch.stack([kl_sum_G, count_G, z0_G])))

    def state(self) -> dict[str, float]:
        """Return the sums so far."""
        unread, self._unread = self._unread, []
        if unread:
            values = torch.cat([tensor.flatten() for _, tensor in unread]).cpu()
            parts = values.split([tensor.numel() for _, tensor in unread])
            for (count, tensor), part in zip(unread, parts, strict=True):
                count(part.view_as(tensor))
        return dict(self.sums)

    def restore(self, sums: dict[str, float]) -> None:
        """Go on from what `state` returned."""
        self.sums, self._unread = dict(sums), []

    def take(self, world: World) -> dict[str, float]:
        """Return the means over all processes since the last call, and start again."""
        sums = self.state()
        values = world.sum(torch.tensor(list(sums.values()), dtype=torch.float64, device=world.device))
        total = dict(zip(sums, values.tolist(), strict=True))
        self.restore(dict.fromkeys(sums, 0.0))
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
        nll_weight: weight of the desirable completions' negative log-likelihood a token.
    """

    weights: KtoWeights
    kl_scope: Literal["step", "microbatch", "none"]
    budget: int
    packed: bool
    nll_weight: float = 0.0


@dataclass(frozen=True)
class _Step:
    """Rows of one optimizer step, the same on every process, and the group of each that shares a z0."""

    rows: np.ndarray
    group_of: np.ndarray
    epoch: int


class KtoTask(Task):
    """KTO on examples whose reference log-probabilities are known.

    Args:
        data: what to train on.
        eval_data: what to evaluate on, where there is any.
        options: how the loss is computed.
        pad_id: what padding is filled with.
    """

    sees_whole_step = True

    def __init__(self, data: KtoData, eval_data: KtoData | None, options: KtoOptions, pad_id: int) -> None:
        self.data, self.eval_data, self.options, self.pad_id = data, eval_data, options, pad_id
        self.num_rows = len(data.examples)
        self.metrics = KtoMetrics()

    def steps(self, training: Training, first: int) -> Iterator[_Step]:
        """Yield the rows of each step."""
        for number in range(first, training.max_steps + 1):
            microbatches = training.order.microbatches(number)
            group_of = np.repeat(np.arange(len(microbatches)), [len(microbatch) for microbatch in microbatches])
            if self.options.kl_scope != "microbatch":
                group_of = np.zeros_like(group_of)
            yield _Step(np.concatenate(microbatches), group_of, training.order.epoch_of(number))

    def passes(self, training: Training, step: _Step) -> list[Pass]:
        """Compute the step's z0, and return a pass for each of this process's bins; their losses add up to the mean."""
        switch_randomness_off(training.model)
        return self._passes(training, training.parallel.model, self.data, step)

    def _passes(self, training: Training, model: torch.nn.Module, data: KtoData, step: _Step) -> list[Pass]:
        z0_G = self._reference_points(training, data, step)
        bins = self._my_bins(training, data.examples, step.rows, step.rows)
        return [partial(self._loss, training, model, data, step, z0_G, places) for places in bins]

    def _loss(
        self,
        training: Training,
        model: torch.nn.Module,
        data: KtoData,
        step: _Step,
        z0_G: torch.Tensor,
        places: list[int],
    ) -> torch.Tensor:
        """Return a bin's share of the step's mean loss, times the processes, over which gradients are averaged."""
        # where there are fewer rows than processes, one without a row takes part with weight 0
        weight, places = float(bool(places)), places or [0]
        rows = step.rows[places]
        one_bin = self._make_bin(training, data.examples, rows, rows)
        is_desirable = data.examples.is_desirable[rows]
        of_bin = (data.reference.logp_N[rows], is_desirable, step.group_of[places])
        reference_B, is_desirable_B, group_B = (
            torch.from_numpy(values).to(z0_G.device, non_blocking=True) for values in of_bin
        )
        z0_B = z0_G[group_B]
        weight *= training.world.size
        scale = weight / len(step.rows)
        num_desirable = max(1, int(data.examples.is_desirable[step.rows].sum()))
        nll_of_B = is_desirable * self.options.nll_weight * weight / num_desirable / np.array(one_bin.sizes)
        nll_scale_B = torch.from_numpy(nll_of_B.astype(np.float32)).to(z0_G.device, non_blocking=True)

        def objective(logp_b: torch.Tensor, which: slice) -> torch.Tensor:
            ratio_b = logp_b - reference_B[which]
            kto_b = kto_loss(ratio_b, is_desirable_B[which], z0_B[which], self.options.weights)
            return scale * kto_b - nll_scale_B[which] * logp_b

        loss, logp_B, entropy_B = model(bin=one_bin, objective=objective)
        if weight:
            beta = self.options.weights.beta
            self.metrics.add(beta, is_desirable, one_bin.sizes, logp_B, logp_B - reference_B, entropy_B)
        return loss

    @torch.no_grad()
    def _reference_points(self, training: Training, data: KtoData, step: _Step) -> torch.Tensor:
        """Return z0 of each group of the step, float32, shape (G,).

        Each process adds the log-ratios of its share of the mismatched pairs to their groups' sums.
        """
        world, num_groups = training.world, int(step.group_of[-1]) + 1
        sums = torch.zeros(2, num_groups, device=world.device)
        if self.options.kl_scope != "none":
            chosen = data.plan.estimates_kl(step.epoch)[step.rows]
            rows, group_of = step.rows[chosen], step.group_of[chosen]
            partners = data.plan.partners(step.epoch)[rows]
            reference = data.reference.kl_logp_PN[data.plan.pairing_of(step.epoch)]
            for places in self._my_bins(training, data.examples, rows, partners):
                some = places or [0]
                with training.parallel.computing():
                    logp_B = training.model(bin=self._make_bin(training, data.examples, rows[some], partners[some]))
                for place, logp in zip(places, logp_B.unbind(), strict=False):  # none where it has no sequence
                    sums[0, group_of[place]] += logp - float(reference[rows[place]])
                    sums[1, group_of[place]] += 1
            sums = world.sum(sums)
        z0_G = reference_points(sums[0], sums[1])
        if world.is_main:
            self.metrics.add_step(sums[0], sums[1], z0_G)
        return z0_G

    def _my_bins(
        self, training: Training, examples: KtoExamples, prompts: np.ndarray, completions: np.ndarray
    ) -> list[list[int]]:
        """Return this process's share of the bins; each process has the same number, so that they keep in step."""
        rank, size, options = training.world.rank, training.world.size, self.options
        costs = examples.costs(prompts, completions)
        return plan_bins(costs, options.budget - examples.num_shared, size, options.packed)[rank::size]

    def _make_bin(self, training: Training, examples: KtoExamples, prompts: np.ndarray, completions: np.ndarray) -> Bin:
        return make_bin(examples, prompts, completions, self.pad_id, self.options.packed).to(training.world.device)

    # Evaluation and the log.

    @torch.no_grad()
    def evaluate(self, training: Training) -> dict[str, float]:
        """Return loss and metrics of the evaluation split, its pairs those of epoch 0, z0 over all of it."""
        assert self.eval_data is not None
        training_metrics, self.metrics = self.metrics, KtoMetrics()
        training.model.eval()
        rows = np.arange(len(self.eval_data.examples))
        loss = torch.zeros((), device=training.world.device)
        for one_pass in self._passes(training, training.model, self.eval_data, _Step(rows, np.zeros_like(rows), 0)):
            with training.parallel.computing():
                loss += one_pass()
        figures = {"loss": training.world.sum(loss).item() / training.world.size, **self.metrics.take(training.world)}
        self.metrics = training_metrics
        return figures

    def figures(self, training: Training) -> dict[str, float]:
        """Return KTO's metrics of the steps since the last call."""
        return self.metrics.take(training.world)

    def state(self) -> dict[str, Any]:
        """Return the metrics summed since the last log line."""
        return self.metrics.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.metrics.restore(state)
