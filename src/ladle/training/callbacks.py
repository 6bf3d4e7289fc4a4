"""What happens around optimizer steps: progress on the terminal, and a clean stop when the machine is taken away."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from types import FrameType
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ladle.log import ProgressBar, get_logger, progress
from ladle.training.processes import is_any

logger = get_logger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Slurm and Kubernetes send SIGTERM before they take a machine back; `sbatch --signal=USR1@300`, SIGUSR1 earlier."""


class ShowProgress(TrainerCallback):
    """Shows optimizer steps and logged values on the first process."""

    def __init__(self) -> None:
        self._open_bar = ExitStack()
        self.bar: ProgressBar | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the step training goes on from."""
        if state.is_world_process_zero:
            self.bar = self._open_bar.enter_context(progress(state.max_steps, "training", "steps"))
            self.bar.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count a step."""
        if self.bar is not None:
            self.bar.advance(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print what was logged as one line."""
        if state.is_world_process_zero and logs and "loss" in logs:
            shown = ", ".join(f"{key} {float(value):.4g}" for key, value in logs.items() if key != "epoch")
            logger.info("step %d/%d: %s", state.global_step, state.max_steps, shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self._open_bar.close()


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGUSR1, saves at the next step and ends training; `stopped` tells that it did."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked = self.stopped = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Listen."""
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop all processes at the same step, whichever of them was told."""
        if is_any(self.accelerator, self.asked):
            logger.warning("asked to stop: saving at step %d; run the same command again to go on", state.global_step)
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
