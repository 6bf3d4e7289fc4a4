"""What happens around optimizer steps: progress on the terminal, and a clean stop when the machine is taken away."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
            if self.bar is not None:
                self.bar.say(_short(logs))
        elif state.is_world_process_zero and logs and "eval_loss" in logs:
            logger.info("step %d/%d: held-out loss %.4f", state.global_step, state.max_steps, logs["eval_loss"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self._open_bar.close()


def _short(logs: Mapping[str, float]) -> str:
    """Return what the bar has room for."""
    parts = [f"loss {logs['loss']:.3f}"]
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in logs:
        parts.append(f"{logs['mfu']:.1%} MFU")
    return ", ".join([*parts, f"{logs['memory_gb']:.1f} GB"])


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGUSR1, saves at the next step and ends training; `stopped` tells that it did."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked = self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the signals inside the block, however it ends."""
        previous = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop all processes at the same step, whichever of them was told."""
        if is_any(self.accelerator, self.asked):
            logger.warning("asked to stop: saving at step %d; run the same command again to go on", state.global_step)
            self.stopped = control.should_save = control.should_training_stop = True
