"""Stopping before a loss or gradient that is not finite reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from ladle.training.processes import is_any

SHOWN_ROWS = 16


class FiniteGuard:
    """Remembers a loss that was not finite until the optimizer step that would use it.

    Attributes:
        bad_loss: the last such loss of this process, None if all were finite.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.bad_loss: float | None = None

    def note_loss(self, loss: float) -> None:
        """Remember a microbatch's loss if it is not finite."""
        if not math.isfinite(loss):
            self.bad_loss = loss

    def refuses(self, grad_norm: float | None) -> bool:
        """Return, alike on every process, whether any of them met a loss or gradient norm that is not finite."""
        is_bad_norm = grad_norm is not None and not math.isfinite(grad_norm) and not self._scales_loss()
        return is_any(self.accelerator, self.bad_loss is not None or is_bad_norm)

    def _scales_loss(self) -> bool:
        # under fp16 an overflow is expected: the scaler skips the step and lowers the scale
        return getattr(self.accelerator, "scaler", None) is not None

    def explain(self, step: int, grad_norm: float | None, rows: Sequence[int], last_good: Path | None) -> str:
        """Return what was seen at an optimizer step, on which rows, and what to do about it."""
        seen = f"a loss of {self.bad_loss}" if self.bad_loss is not None else f"a gradient norm of {grad_norm}"
        shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", …" if len(rows) > SHOWN_ROWS else "")
        return (
            f"step {step} gave {seen}: training stopped before the optimizer used it. Its rows: {shown}. "
            f"Last good checkpoint: {last_good.name if last_good else 'none'}. "
            "Lower trainer.learning_rate, or look at those rows"
        )


def as_number(norm: torch.Tensor | float | None) -> float | None:
    """Return a gradient norm as a number; transformers gives a tensor, a number (DeepSpeed) or None."""
    return norm.item() if isinstance(norm, torch.Tensor) else norm
