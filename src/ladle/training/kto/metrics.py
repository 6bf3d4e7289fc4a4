"""The figures of a KTO training, summed over steps and processes and logged as means under TRL's names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator

from ladle.training.processes import reduce_tensor

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
    """Sums since the last log line.

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
        values = torch.tensor(list(self.sums.values()), dtype=torch.float64)
        if accelerator.num_processes > 1:
            values = reduce_tensor(accelerator, values.to(accelerator.device), "sum")
        total = dict(zip(self.sums, values.tolist(), strict=True))
        self.sums = dict.fromkeys(self.sums, 0.0)
        return _means(total)


def _means(total: Mapping[str, float]) -> dict[str, float]:
    total = {**total, "count": total["count/chosen"] + total["count/rejected"]}
    means = {name: total[name] / total[divisor] for name, divisor in DIVISORS.items() if total[divisor]}
    if {"rewards/chosen", "rewards/rejected"} <= means.keys():
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return means | {name: total[name] for name in ("count/chosen", "count/rejected")}
