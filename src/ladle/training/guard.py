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

from ladle.artifacts.torchrun import STOP_SIGNALS
from ladle.errors import CheckFailed
from ladle.log import get_logger

logger = get_logger(__name__)

SHOWN_ROWS = 16
WINDOW, LEAST, DEVIATIONS, LEAST_RATIO = 64, 16, 8 * 1.4826, 1.05


class StepGuard:
    """Watches the loss and the gradient of each optimizer step.

    Args:
        max_skips: steps that may be skipped because of a number that is not finite; 0 stops at the first.

    Attributes:
        num_skipped: steps skipped so far.
    """

    def __init__(self, max_skips: int) -> None:
        self.max_skips = max_skips
        self.num_skipped = 0
        self.spikes = SpikeWatch()

    def refuse(self, step: int, loss: float, grad_norm: float, rows: Sequence[int], last_good: Path | None) -> None:
        """Stop at a step that met a number that is not finite, before the optimizer uses it, or count it as skipped.

        Args:
            step: the optimizer step.
            loss: its loss on this process.
            grad_norm: the norm of its gradients.
            rows: the rows it took.
            last_good: the newest checkpoint.

        Raises:
            CheckFailed: no further step may be skipped.
        """
        seen = f"a gradient norm of {grad_norm}" if math.isfinite(loss) else f"a loss of {loss}"
        message = (
            f"step {step} gave {seen}, before the optimizer used it. Its rows: {shorten(rows)}. "
            f"Last good checkpoint: {last_good.name if last_good else 'none'}. "
            "Lower trainer.learning_rate, or look at those rows"
        )
        if self.num_skipped >= self.max_skips:
            raise CheckFailed(message)
        logger.warning("skipped: %s", message)
        self.num_skipped += 1

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to know, as JSON."""
        return {"losses": list(self.spikes.losses), "num_skipped": self.num_skipped}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.spikes, self.num_skipped = SpikeWatch(state["losses"]), state["num_skipped"]


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


class StopOnSignal:
    """Notes SIGTERM and SIGUSR1, after which training saves at the next step and ends.

    Slurm and Kubernetes send SIGTERM before they take a machine back; `sbatch --signal=USR1@300` sends SIGUSR1 earlier.
    """

    def __init__(self) -> None:
        self.is_asked = False

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
        self.is_asked = True
