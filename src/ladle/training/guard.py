"""Stopping before a loss or gradient that is not finite reaches the weights, and telling of losses that jump."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ladle.training.processes import is_any
from ladle.training.spikes import SpikeWatch

SHOWN_ROWS = 16


class StepGuard:
    """Watches the loss of each microbatch and the gradient of each optimizer step.

    Args:
        accelerator: asks the other processes.
        max_skips: steps that may be left out because of such a number; 0 stops at the first.

    Attributes:
        bad_loss: the last loss of this process's current step that was not finite, None if all were finite.
        step_loss: sum of the losses of the current step's microbatches.
        num_skipped: steps left out so far.
        skipped_since_log: those of them since the last log line.
    """

    def __init__(self, accelerator: Accelerator, max_skips: int) -> None:
        self.accelerator, self.max_skips = accelerator, max_skips
        self.bad_loss: float | None = None
        self.step_loss = 0.0
        self.num_skipped = self.skipped_since_log = 0
        self.spikes = SpikeWatch()

    def note_loss(self, loss: float) -> None:
        """Take in a microbatch's loss."""
        self.step_loss += loss
        if not math.isfinite(loss):
            self.bad_loss = loss

    def refuses(self, grad_norm: float | None) -> bool:
        """Return, alike on every process, whether any of them met a loss or gradient norm that is not finite."""
        is_bad_norm = grad_norm is not None and not math.isfinite(grad_norm) and not self.scales_loss()
        return is_any(self.accelerator, self.bad_loss is not None or is_bad_norm)

    def scales_loss(self) -> bool:
        """Tell whether fp16's loss scaling is on: an overflow is then expected, and its scaler skips the step."""
        return getattr(self.accelerator, "scaler", None) is not None

    def skip(self) -> None:
        """Count a step as left out."""
        self.num_skipped += 1
        self.skipped_since_log += 1

    def end_step(self) -> str | None:
        """Begin a new step; return what is odd about the loss of the one that ended, None if nothing is."""
        report = self.spikes.note(self.step_loss) if math.isfinite(self.step_loss) else None
        self.step_loss, self.bad_loss = 0.0, None
        return report

    def explain(self, step: int, grad_norm: float | None, rows: Sequence[int], last_good: Path | None) -> str:
        """Return what was seen at an optimizer step, on which rows, and what to do about it."""
        seen = f"a loss of {self.bad_loss}" if self.bad_loss is not None else f"a gradient norm of {grad_norm}"
        return (
            f"step {step} gave {seen}, before the optimizer used it. Its rows: {shorten(rows)}. "
            f"Last good checkpoint: {last_good.name if last_good else 'none'}. "
            "Lower trainer.learning_rate, or look at those rows"
        )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know, as JSON."""
        return {
            "losses": list(self.spikes.losses),
            "num_skipped": self.num_skipped,
            "skipped_since_log": self.skipped_since_log,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self.spikes.restore(state["losses"])
        self.num_skipped, self.skipped_since_log = state["num_skipped"], state["skipped_since_log"]


def shorten(rows: Sequence[int]) -> str:
    """Return row numbers for a message, the first few of them."""
    return ", ".join(map(str, rows[:SHOWN_ROWS])) + (", …" if len(rows) > SHOWN_ROWS else "")


def as_number(norm: torch.Tensor | float | None) -> float | None:
    """Return a gradient norm as a number; transformers gives a tensor, a number (DeepSpeed) or None."""
    return norm.item() if isinstance(norm, torch.Tensor) else norm
