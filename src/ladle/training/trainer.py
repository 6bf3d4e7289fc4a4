"""The Trainer that pretraining and KTO share: transformers.Trainer that resumes exactly and stops before it spoils anything.

What it changes of transformers 5.23, each for a measured fault:
- checkpoints are sealed before they have a name, and the newest one that verifies is resumed (upstream takes half-written ones);
- weights are loaded through `from_pretrained`, every parameter and buffer accounted for (upstream drops DeepSeek-V3's routed experts);
- the loss accumulated since the last log line is restored too, so that a resumed run logs what an uninterrupted one does;
- a loss or gradient that is not finite stops the run before the optimizer step (upstream logs 0.0 and saves NaN);
- rows are found by arithmetic on the step, not by replaying batches.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from transformers.trainer_utils import SaveStrategy

from ladle.artifacts.files import hash_bytes, pretty_json
from ladle.errors import CheckFailed, Preempted
from ladle.log import get_logger
from ladle.models.load import complete_config, load_model
from ladle.training.balance import BalanceExperts
from ladle.training.callbacks import ShowProgress, StopOnSignal
from ladle.training.checkpoint import (
    PREEMPTED,
    STAGING,
    Rotation,
    is_preempted,
    list_checkpoints,
    newest_resumable,
    remove_checkpoint,
    remove_unfinished,
    require_free_space,
    rotate,
    seal,
    step_of,
    strip_training_state,
)
from ladle.training.order import RowOrder, rows_of_epoch

logger = get_logger(__name__)

LOG_NAME = "training_log.jsonl"
_TIMINGS = frozenset(
    "train_runtime train_samples_per_second train_steps_per_second train_tokens_per_second total_flos".split()
)


class LadleTrainer(Trainer):
    """transformers.Trainer with exact resume and guards.

    Args:
        keep: which older checkpoints to keep, whole or as model-only copies.
        router_bias_update_rate: step of the routers' biases towards balance; 0 only measures the load.
        rows_are_shuffled: the dataset's rows stand in random order, so the first epoch takes them as they are.
    """

    def __init__(self, *args: Any, keep: Rotation, rows_are_shuffled: bool, router_bias_update_rate: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep = keep
        self.rows_are_shuffled = rows_are_shuffled
        self.stop_on_signal = StopOnSignal(self.accelerator)
        self.folder = Path(self.args.output_dir)
        self.staging: Path | None = None
        self.resumed_from: Path | None = None
        self.bad_loss: float | None = None
        self.remove_callback(PrinterCallback)
        self.balance = BalanceExperts(self.model, router_bias_update_rate, self.accelerator)
        for callback in (_RestoreProgress(self), self.balance, ShowProgress(), self.stop_on_signal):
            self.add_callback(callback)

    # Running, from wherever the last try got to.

    def train_or_resume(self) -> None:
        """Train to the end, from the newest valid checkpoint if there is one.

        Raises:
            Preempted: a signal asked for a stop; a checkpoint of that step was saved.
            CheckFailed: a loss or gradient was not finite.
            UserError: the disk cannot hold a checkpoint.
        """
        with self.accelerator.main_process_first():
            if self.args.should_save:
                self.folder.mkdir(parents=True, exist_ok=True)
                checkpoint = newest_resumable(self.folder)
                remove_unfinished(self.folder, step_of(checkpoint) if checkpoint else 0)
        self.accelerator.wait_for_everyone()
        self.resumed_from = newest_resumable(self.folder)
        if self.resumed_from is not None:
            logger.info("going on from %s", self.resumed_from.name)
        elif self.args.save_strategy != SaveStrategy.NO and self.args.should_save:
            require_free_space(self.folder, self._checkpoint_bytes(), "a checkpoint")
        self.train(resume_from_checkpoint=str(self.resumed_from) if self.resumed_from else None)
        if self.stop_on_signal.stopped and self.state.global_step < self.state.max_steps:
            raise Preempted(
                f"stopped at step {self.state.global_step} of {self.state.max_steps}, saved; run the same command again to go on"
            )

    def finish_checkpoints(self) -> None:
        """Leave model-only copies, so that equal runs leave equal bytes; the final model is the stage's to save."""
        if self.args.should_save:
            for checkpoint in list_checkpoints(self.folder):
                if is_preempted(checkpoint):
                    remove_checkpoint(checkpoint)
                else:
                    strip_training_state(checkpoint)
            shutil.rmtree(self.folder / STAGING, ignore_errors=True)

    # Checkpoints.

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging) if self.staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save into a staging folder on every process, then seal and rotate on the first."""
        staging = self.folder / STAGING
        if self.args.should_save:
            require_free_space(
                self.folder, self._checkpoint_bytes(), f"the checkpoint of step {self.state.global_step}"
            )
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        staged = staging / f"checkpoint-{self.state.global_step}"
        self.staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.staging = None
        self._save_progress(staged)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._seal(staged)
        self.accelerator.wait_for_everyone()

    def _seal(self, staged: Path) -> None:
        if (staged / "config.json").is_file():
            complete_config(staged)
        if self.stop_on_signal.stopped and not self._is_scheduled():
            (staged / PREEMPTED).write_text(pretty_json({"step": self.state.global_step}))
        seal(staged, self.folder)
        rotate(self.folder, self.keep)

    def _is_scheduled(self) -> bool:
        step, every = self.state.global_step, self.state.save_steps
        return self.args.save_strategy == SaveStrategy.STEPS and (
            step % every == 0 or step == self.state.max_steps
        )

    def _checkpoint_bytes(self) -> int:
        """Estimate a checkpoint's size: the weights, and twice the trainable ones in float32 for AdamW unless only the model is saved."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return weights + (0 if self.args.save_only_model else 8 * trainable)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load weights so that every parameter and buffer is accounted for."""
        target = model if model is not None else self.model
        if hasattr(target, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_model(Path(resume_from_checkpoint), "auto", "eager")
        target.load_state_dict(saved.state_dict(), strict=True)

    # The running loss, which transformers forgets.

    def _save_progress(self, staged: Path) -> None:
        progress = {
            "running_loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }
        (staged / f"progress_{self.args.process_index}.json").write_text(json.dumps(progress))

    def restore_progress(self) -> None:
        """Put back the loss summed since the last log line, of this process."""
        self.balance.load.counts.clear()
        if self.resumed_from is None:
            return
        saved = json.loads((self.resumed_from / f"progress_{self.args.process_index}.json").read_text())
        self._tr_loss.fill_(saved["running_loss"])
        self._total_loss_scalar, self._globalstep_last_logged = saved["total_loss"], saved["last_logged"]
        self._initial_global_step = 0

    # The order of rows.

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of microbatches, in `RowOrder`."""
        assert isinstance(self.train_dataset, Sized)
        self.order = RowOrder(
            len(self.train_dataset),
            self._train_batch_size,
            self._data_seed(),
            self.rows_are_shuffled,
            self.args.dataloader_drop_last,
        )
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        return self.accelerator.prepare(loader)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if kwargs["epoch"] == kwargs["epochs_trained"] and kwargs["resume_from_checkpoint"] is not None:
            self.order.start_at(kwargs["steps_trained_in_current_epoch"] * self.accelerator.num_processes)
        self.order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def rows_of_step(self, step: int) -> list[int]:
        """Return the numbers of the rows that optimizer step `step` (from 1) takes, over all processes."""
        num_rows = len(self.train_dataset)  # type: ignore[arg-type]
        per_step = self._train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        steps_in_epoch = max(1, -(-num_rows // per_step))
        epoch, index = divmod(step - 1, steps_in_epoch)
        order = rows_of_epoch(num_rows, self._data_seed(), epoch, self.rows_are_shuffled)
        return order[index * per_step : (index + 1) * per_step].tolist()

    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    # Guards.

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one microbatch and note a loss that is not finite."""
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            self.bad_loss = loss.item()
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient norm; stop every process here, before the optimizer step, if it or a loss is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        value = norm.item() if isinstance(norm, torch.Tensor) else norm
        is_bad = torch.tensor(
            int(
                self.bad_loss is not None
                or (value is not None and not math.isfinite(value) and not self._scales_loss())
            )
        )
        if self.accelerator.num_processes > 1:
            is_bad = self.accelerator.reduce(is_bad.to(self.args.device), reduction="sum")
        if is_bad.item():
            raise CheckFailed(self._explain_bad_step(value))
        return norm

    def _scales_loss(self) -> bool:
        return (
            getattr(self.accelerator, "scaler", None) is not None
        )  # fp16: an overflow is skipped and the scale lowered

    def _explain_bad_step(self, grad_norm: Any) -> str:
        step = self.state.global_step + 1
        seen = f"a loss of {self.bad_loss}" if self.bad_loss is not None else f"a gradient norm of {grad_norm}"
        rows = self.rows_of_step(step)
        shown = ", ".join(map(str, rows[:16])) + (", …" if len(rows) > 16 else "")
        good = list_checkpoints(self.folder)
        return (
            f"step {step} gave {seen}: training stopped before the optimizer used it. Its rows: {shown}. "
            f"Last good checkpoint: {good[-1].name if good else 'none'}. Lower trainer.learning_rate, or look at those rows"
        )

    # The log.

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what the Trainer gives and how evenly experts were loaded at the last step."""
        super().log(logs | (self.balance.figures if "loss" in logs else {}), *args, **kwargs)

    def write_log(self, path: Path) -> None:
        """Write what was logged, a JSON object a line, without timings: equal runs give equal files."""
        rows = ({key: value for key, value in entry.items() if key not in _TIMINGS} for entry in self.state.log_history)
        path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")

    def optimizer_digest(self) -> str:
        """Return the blake3 over the optimizer's tensors, in parameter order: equal runs give equal digests."""
        state = self.optimizer.state_dict()["state"]  # type: ignore[union-attr]
        digests = [
            [index, name, hash_bytes(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())]
            for index, entry in sorted(state.items())
            for name, value in sorted(entry.items())
            if isinstance(value, torch.Tensor)
        ]
        return hash_bytes(json.dumps(digests).encode())


class _RestoreProgress(TrainerCallback):
    """transformers resets its running loss just before this event, so this is where it is put back."""

    def __init__(self, trainer: LadleTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.restore_progress()
