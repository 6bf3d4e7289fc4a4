"""Tells a loss that jumps from one that wanders: the last losses' median and spread decide.

A step whose loss lies above median + 8 · 1.4826 · median absolute deviation of the last 64 steps, and above 1.05 ·
median, is a spike. (1.4826 makes the deviation that of a normal distribution; 8 of them leave out what a noisy batch
does; the 5 % keep a run whose loss hardly moves from crying wolf.)
"""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW, LEAST, DEVIATIONS, LEAST_RATIO = 64, 16, 8 * 1.4826, 1.05


class SpikeWatch:
    """Holds the last losses; `losses` can be saved and put back."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def restore(self, losses: list[float]) -> None:
        """Go on with saved losses."""
        self.losses = deque(losses, maxlen=WINDOW)

    def note(self, loss: float) -> str | None:
        """Take a step's loss; return what is odd about it, None if nothing is."""
        report = self._report(loss) if len(self.losses) >= LEAST else None
        self.losses.append(loss)
        return report

    def _report(self, loss: float) -> str | None:
        middle = median(self.losses)
        spread = median(abs(other - middle) for other in self.losses)
        limit = max(middle + DEVIATIONS * spread, LEAST_RATIO * middle)
        if loss <= limit:
            return None
        return (
            f"a loss of {loss:.4g} where the last {len(self.losses)} steps had a median of {middle:.4g} "
            f"(spread {spread:.2g}; above {limit:.4g} is a spike)"
        )
