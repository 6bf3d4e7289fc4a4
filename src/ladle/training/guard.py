"""What stops a training early, or warns: numbers that are not finite, a signal, a loss that jumps.

A loss or gradient that is not finite is met before it reaches the weights. A step whose loss lies above median + 8 ·
1.4826 · median absolute deviation of the last 64 steps, and above 1.05 · median, is a spike. (1.4826 makes the
deviation that of a normal distribution; 8 of them leave out what a noisy batch does; the 5 % keep a run whose loss
hardly moves from crying wolf.)
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState

from ladle.artifacts.torchrun import STOP_SIGNALS
from ladle.log import get_logger
from ladle.training.processes import is_any

logger = get_logger(__name__)

SHOWN_ROWS = 16
WINDOW, LEAST, DEVIATIONS, LEAST_RATIO = 64, 16, 8 * 1.4826, 1.05


class StepGuard:
    """Watches the loss of each microbatch and the gradient of each optimizer step.

    Args:
        accelerator: asks the other processes.
        max_skips: steps that may be skipped because of such a number; 0 stops at the first.

    Attributes:
        bad_loss: the last loss of this process's current step that was not finite, None if all were finite.
        step_loss: sum of the losses of the current step's microbatches.
        num_skipped: steps skipped so far.
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
        """Return, the same on every process, whether any of them met a loss or gradient norm that is not finite."""
        is_bad_norm = grad_norm is not None and not math.isfinite(grad_norm) and not self.scales_loss()
        return is_any(self.accelerator, self.bad_loss is not None or is_bad_norm)

    def scales_loss(self) -> bool:
        """Return whether fp16's loss scaling is on: an overflow is then expected, and its scaler skips the step."""
        return getattr(self.accelerator, "scaler", None) is not None

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
        """Restore what `state` returned."""
        self.spikes = SpikeWatch(state["losses"])
        self.num_skipped, self.skipped_since_log = state["num_skipped"], state["skipped_since_log"]


def shorten(rows: Sequence[int]) -> str:
    """Return row numbers for a message, the first few of them."""
    return ", ".join(map(str, rows[:SHOWN_ROWS])) + (", …" if len(rows) > SHOWN_ROWS else "")


class SpikeWatch:
    """Separates a loss that jumps from one that wanders; the last `losses` can be saved, and given to another one."""

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.losses: deque[float] = deque(losses, maxlen=WINDOW)

    def note(self, loss: float) -> str | None:
        """Take a step's loss; return what is odd about it, None if nothing is."""
        known = list(self.losses)
        self.losses.append(loss)
        if len(known) < LEAST:
            return None
        middle = median(known)
        spread = median(abs(other - middle) for other in known)
        limit = max(middle + DEVIATIONS * spread, LEAST_RATIO * middle)
        if loss <= limit:
            return None
        return (
            f"a loss of {loss:.4g} where the last {len(known)} steps had a median of {middle:.4g} "
            f"(spread {spread:.2g}; above {limit:.4g} is a spike)"
        )


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGUSR1, saves at the next step and ends training; then `stopped` is true.

    Slurm and Kubernetes send SIGTERM before they take a machine back; `sbatch --signal=USR1@300` sends SIGUSR1 earlier.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked = self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the block, however it ends."""
        previous = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop all processes at the same step, whichever of them got the signal."""
        if is_any(self.accelerator, self.asked):
            logger.warning("asked to stop: saving at step %d; run the same command again to resume", state.global_step)
            self.stopped = control.should_save = control.should_training_stop = True
