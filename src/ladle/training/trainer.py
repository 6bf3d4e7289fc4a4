"""The Trainer that pretraining and KTO share: it resumes exactly and stops before it spoils anything.

What it changes of transformers 5.23, each for a measured fault:
- checkpoints are sealed before they have a name, and the newest one that verifies is resumed (upstream takes
  half-written ones);
- weights are loaded through `from_pretrained`, every parameter and buffer accounted for (upstream drops DeepSeek-V3's
  routed experts);
- the loss accumulated since the last log line is restored too, so that a resumed run logs what an uninterrupted one
  does;
- a loss or gradient that is not finite stops the run before the optimizer step (upstream logs 0.0 and saves NaN);
- rows are found by arithmetic on the step, not by replaying batches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ladle.artifacts.files import hash_bytes, pretty_json
from ladle.errors import CheckFailed, Preempted, UserError
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
from ladle.training.guard import FiniteGuard, as_number
from ladle.training.order import RowOrder, rows_of_epoch
from ladle.training.outcome import digest_tensors, optimizer_tensors, write_log
from ladle.training.processes import gather_objects
from ladle.training.zero2 import DEEPSPEED_ENGINE, guard_engine, partition_tensors

logger = get_logger(__name__)


class LadleTrainer(Trainer):
    """transformers.Trainer with exact resume and guards.

    Args:
        keep: which older checkpoints to keep, whole or as model-only copies.
        router_bias_update_rate: step of the routers' biases towards balance; 0 only measures the load.
        rows_are_shuffled: the dataset's rows stand in random order, so the first epoch takes them as they are.
    """

    # Trainer's own annotations allow None, which these are not while a training runs.
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    deepspeed: Any

    def __init__(
        self, *args: Any, keep: Rotation, rows_are_shuffled: bool, router_bias_update_rate: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.keep = keep
        self.rows_are_shuffled = rows_are_shuffled
        self.stop_on_signal = StopOnSignal(self.accelerator)
        assert self.args.output_dir is not None
        self.folder = Path(self.args.output_dir)
        self.staging: Path | None = None
        self.resumed_from: Path | None = None
        self.guard = FiniteGuard(self.accelerator)
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
        self._refuse_other_world()
        self.train(resume_from_checkpoint=str(self.resumed_from) if self.resumed_from else None)
        if self.stop_on_signal.stopped and self.state.global_step < self.state.max_steps:
            raise Preempted(
                f"stopped at step {self.state.global_step} of {self.state.max_steps}, saved; "
                "run the same command again to go on"
            )

    def _refuse_other_world(self) -> None:
        if self.resumed_from is None:
            return
        then, now = len(list(self.resumed_from.glob("progress_*.json"))), self.accelerator.num_processes
        if then != now:
            raise UserError(
                f"{self.resumed_from} was saved by {then} processes and {now} are running: they cannot go on exactly",
                f"set processes={then} as before, or start afresh in another folder",
            )

    def finish_checkpoints(self) -> None:
        """Leave model-only copies, so that equal runs leave equal bytes; the final model is the stage's to save."""
        if self.args.should_save:
            rotate(self.folder, self.keep)  # what a crash may have cut short
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
        return self.args.save_strategy == SaveStrategy.STEPS and (step % every == 0 or step == self.state.max_steps)

    def _checkpoint_bytes(self) -> int:
        """Estimate a checkpoint's size: the weights, and twice the trainable ones in float32 for AdamW.

        DeepSpeed saves the weights once more, and float32 ones. Where only the model is saved, it is the weights alone.
        """
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        if self.args.save_only_model:
            return weights
        return 2 * weights + 12 * trainable if self.is_deepspeed_enabled else weights + 8 * trainable

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
        self.order = RowOrder(
            self._num_rows(),
            self._train_batch_size,
            self._data_seed(),
            self.rows_are_shuffled,
            self.args.dataloader_drop_last,
        )
        loader = DataLoader(
            cast(Dataset[Any], self.train_dataset),
            batch_sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        return self.accelerator.prepare(loader)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # resumed from the last checkpoint: upstream would take one step too many
            self.control.should_training_stop = True
            return
        if kwargs["epoch"] == kwargs["epochs_trained"] and kwargs["resume_from_checkpoint"] is not None:
            processes = self.accelerator.num_processes
            self.order.start_at(kwargs["steps_trained_in_current_epoch"] * processes, processes)
        self.order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def rows_of_step(self, step: int) -> list[int]:
        """Return the numbers of the rows that optimizer step `step` (from 1) takes, over all processes."""
        num_rows = self._num_rows()
        per_step = self._train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        steps_in_epoch = max(1, -(-num_rows // per_step))
        epoch, index = divmod(step - 1, steps_in_epoch)
        order = rows_of_epoch(num_rows, self._data_seed(), epoch, self.rows_are_shuffled)
        return order[index * per_step : (index + 1) * per_step].tolist()

    def _num_rows(self) -> int:
        assert isinstance(self.train_dataset, Sized)
        return len(self.train_dataset)

    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    # The guard.

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._require_wrapper()
        if self.is_deepspeed_enabled:
            guard_engine(self.deepspeed, self.guard.note_loss, self._refuse_bad_step)
        return prepared

    @property
    def wrapper(self) -> str:
        """Name of the class that holds the model in training."""
        return type(self.model_wrapped).__name__

    def _require_wrapper(self) -> None:
        """Refuse to train some other way than asked: accelerate falls back to one process or plain DDP in silence."""
        expected = "DistributedDataParallel" if self.accelerator.num_processes > 1 else type(self.model).__name__
        expected = DEEPSPEED_ENGINE if self.args.deepspeed else expected
        if self.wrapper != expected and not self.args.torch_compile:
            raise CheckFailed(f"the model is held by {self.wrapper}, where {expected} was asked for")

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one microbatch and note a loss that is not finite."""
        loss = super().training_step(*args, **kwargs)
        self.guard.note_loss(loss.item())
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient norm; stop every process here, before the optimizer step, if the guard refuses it."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.is_deepspeed_enabled:  # whose step was taken, and guarded, inside its backward
            self._refuse_bad_step(as_number(norm))
        return norm

    def _refuse_bad_step(self, grad_norm: float | None) -> None:
        if self.guard.refuses(grad_norm):
            step = self.state.global_step + 1
            good = list_checkpoints(self.folder)
            raise CheckFailed(self.guard.explain(step, grad_norm, self.rows_of_step(step), good[-1] if good else None))

    # The log.

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what the Trainer gives and how evenly experts were loaded at the last step."""
        super().log(logs | (self.balance.figures if "loss" in logs else {}), *args, **kwargs)

    def write_log(self, path: Path) -> None:
        """Write what was logged, a JSON object a line, without timings: equal runs give equal files."""
        write_log(self.state.log_history, path)

    def optimizer_digest(self) -> str:
        """Return the blake3 over the optimizer's tensors, in parameter order: equal runs give equal digests.

        Under ZeRO-2 over every process's share, float32 weights included; every process must call this.
        """
        if not self.is_deepspeed_enabled:
            return digest_tensors(optimizer_tensors(self.optimizer))
        share = digest_tensors(partition_tensors(self.deepspeed.optimizer))
        return hash_bytes(json.dumps(gather_objects(self.accelerator, share)).encode())


class _RestoreProgress(TrainerCallback):
    """transformers resets its running loss just before this event, so this is where it is put back."""

    def __init__(self, trainer: LadleTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.restore_progress()
