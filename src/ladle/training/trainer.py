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
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from ladle.artifacts.files import pretty_json
from ladle.errors import CheckFailed, Preempted, UserError
from ladle.log import get_logger
from ladle.models.load import complete_config, load_model
from ladle.models.probe import find_routers
from ladle.training.balance import BalanceExperts
from ladle.training.checkpoint import (
    PREEMPTED,
    STAGING,
    Rotation,
    leave_models_only,
    list_checkpoints,
    newest_resumable,
    remove_unfinished,
    require_free_space,
    rotate,
    seal,
    step_of,
)
from ladle.training.guard import StepGuard, StopOnSignal, shorten
from ladle.training.order import RowOrder, places_of_step, rows_of_epoch
from ladle.training.processes import guard_engine
from ladle.training.progress import ShowProgress, Speedometer

logger = get_logger(__name__)


class LadleTrainer(Trainer):
    """transformers.Trainer with exact resume and guards.

    Args:
        keep: which older checkpoints to keep, whole or as model-only copies.
        router_bias_update_rate: step of the routers' biases towards balance; 0 only measures the load.
        max_skipped_steps: steps that may be skipped for a loss or gradient that is not finite; 0 stops at the first.
        rows_are_shuffled: the dataset is in random order already, so the first epoch takes it in that order.
    """

    # Trainer's own annotations allow None, which these are not while a training runs.
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    deepspeed: Any

    def __init__(
        self,
        *args: Any,
        keep: Rotation,
        rows_are_shuffled: bool,
        router_bias_update_rate: float,
        max_skipped_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.keep = keep
        self.rows_are_shuffled = rows_are_shuffled
        self.stop_on_signal = StopOnSignal(self.accelerator)
        assert self.args.output_dir is not None
        self.folder = Path(self.args.output_dir)
        self.staging: Path | None = None
        self.resumed_from: Path | None = None
        self.guard = StepGuard(self.accelerator, max_skipped_steps)
        self._loss_before_step: torch.Tensor | None = None
        self._last_log_step = 0
        multiplied_in = next(self.model.parameters()).dtype
        if self.args.bf16 or self.args.fp16:
            multiplied_in = torch.bfloat16 if self.args.bf16 else torch.float16
        self.speed = Speedometer(
            cast(PreTrainedModel, self.model), self.accelerator.device, multiplied_in, self.accelerator.num_processes
        )
        self.remove_callback(PrinterCallback)
        routers = find_routers(cast(PreTrainedModel, self.model))
        self.balance = BalanceExperts(routers, router_bias_update_rate, self.accelerator)
        for callback in (_AroundSteps(self), self.balance, ShowProgress(), self.stop_on_signal):
            self.add_callback(callback)

    # Running, from wherever the last try got to.

    def train_or_resume(self) -> None:
        """Train to the end, from the newest valid checkpoint if there is one.

        Raises:
            Preempted: a signal stopped it; a checkpoint of that step was saved.
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
            logger.info("resuming from %s", self.resumed_from.name)
            then, now = len(list(self.resumed_from.glob("progress_*.json"))), self.accelerator.num_processes
            if then != now:
                problem = (
                    f"{self.resumed_from} was saved by {then} processes and {now} are running: they cannot resume it"
                )
                raise UserError(problem, f"set processes={then} as before, or start afresh in another folder")
        elif self.args.save_strategy != SaveStrategy.NO and self.args.should_save:
            require_free_space(self.folder, self._checkpoint_bytes(), "a checkpoint")
        with self.stop_on_signal.listening():
            self.train(resume_from_checkpoint=str(self.resumed_from) if self.resumed_from else None)
        if self.stop_on_signal.stopped and self.state.global_step < self.state.max_steps:
            raise Preempted(
                f"stopped at step {self.state.global_step} of {self.state.max_steps}, saved; "
                "run the same command again to resume"
            )

    @property
    def resumed_from_step(self) -> int:
        """The step of the checkpoint that this try resumed from; 0 where it began at the start."""
        return step_of(self.resumed_from) if self.resumed_from else 0

    def timings(self) -> dict[str, float]:
        """Return the mean seconds of an optimizer step of this try, where it took any."""
        seconds = self.speed.seconds_per_step()
        return {} if seconds is None else {"seconds_per_step": round(seconds, 6)}

    def finish_checkpoints(self) -> None:
        """Leave model-only copies, so that equal runs leave equal bytes; the final model is the stage's to save."""
        if self.args.should_save:
            leave_models_only(self.folder, self.keep)

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
        (staged / f"progress_{self.args.process_index}.json").write_text(json.dumps(self.progress()))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if (staged / "config.json").is_file():
                complete_config(staged)
            if self.stop_on_signal.stopped and not self._is_scheduled():
                (staged / PREEMPTED).write_text(pretty_json({"step": self.state.global_step}))
            seal(staged, self.folder)
            rotate(self.folder, self.keep)
        self.accelerator.wait_for_everyone()

    def _is_scheduled(self) -> bool:
        step, every = self.state.global_step, self.state.save_steps
        if self.args.save_strategy == SaveStrategy.EPOCH:
            assert self.state.epoch is not None
            return self.state.epoch == int(self.state.epoch)
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

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Return the optimizer of `trainer.optim`.

        Raises:
            UserError: its package is not installed.
        """
        try:
            return super().create_optimizer(*args, **kwargs)
        except ImportError as error:
            name, why = OptimizerNames(self.args.optim).value, str(error).splitlines()[0]
            fix = "install its package, or set optim: adamw_torch_fused"
            raise UserError(f"trainer.optim={name} cannot run here: {why}", fix) from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self.is_deepspeed_enabled:
            _keep_dtypes_on_loading(getattr(self.optimizer, "optimizer", self.optimizer))
        super()._load_optimizer_and_scheduler(checkpoint)

    # The running loss, which transformers forgets.

    def progress(self) -> dict[str, Any]:
        """Return what this process needs to resume its log: the loss summed since the last line, and its guard's."""
        return {
            "running_loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "guard": self.guard.state(),
            "threads": torch.get_num_threads(),
        }

    def begin(self) -> None:
        """Begin a try, from the progress that the checkpoint holds where there is one."""
        self.balance.counts.clear()
        self.speed.start()
        self.speed.note_time()
        if self.resumed_from is not None:
            path = self.resumed_from / f"progress_{self.args.process_index}.json"
            self.restore_progress(json.loads(path.read_text()))

    def restore_progress(self, saved: dict[str, Any]) -> None:
        """Restore what `progress` returned."""
        self._tr_loss.fill_(saved["running_loss"])
        self._total_loss_scalar, self._globalstep_last_logged = saved["total_loss"], saved["last_logged"]
        self._last_log_step, self._initial_global_step = saved["last_logged"], 0
        self.guard.restore(saved["guard"])
        then, now = saved["threads"], torch.get_num_threads()
        if now != then and self.accelerator.device.type == "cpu":
            logger.warning(
                "the checkpoint was saved by %d threads per process and %d are running: sums round differently, so "
                "the result will not be that of an uninterrupted run. For that, set OMP_NUM_THREADS=%d",
                then, now, then,
            )  # fmt: skip

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
        epoch, places = places_of_step(
            step,
            self._num_rows(),
            self._train_batch_size,
            self.args.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.args.dataloader_drop_last,
        )
        return rows_of_epoch(self._num_rows(), self._data_seed(), epoch, self.rows_are_shuffled)[places].tolist()

    def _num_rows(self) -> int:
        assert isinstance(self.train_dataset, Sized)
        return len(self.train_dataset)

    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    # The guard.

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        # accelerate silently falls back to one process or plain DDP
        expected = "DistributedDataParallel" if self.accelerator.num_processes > 1 else type(self.model).__name__
        expected = "DeepSpeedEngine" if self.args.deepspeed else expected
        if self.wrapper != expected and not self.args.torch_compile:
            raise CheckFailed(f"the model is held by {self.wrapper}, not by {expected} as the recipe requires")
        if self.is_deepspeed_enabled:
            guard_engine(self.deepspeed, self.guard.note_loss, self._refuse_bad_step)
        return prepared

    @property
    def wrapper(self) -> str:
        """Name of the class that holds the model in training."""
        return type(self.model_wrapped).__name__

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one microbatch and note its loss and tokens."""
        self.speed.count(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not self.is_deepspeed_enabled:  # whose loss was noted before its backward
            self.guard.note_loss(loss.item())
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient norm; here, before the optimizer step, every process stops at or skips a bad one."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.is_deepspeed_enabled:  # whose step was taken, and guarded, inside its backward
            return norm
        number = norm.item() if isinstance(norm, torch.Tensor) else norm
        return None if self._refuse_bad_step(number) else norm

    def _refuse_bad_step(self, grad_norm: float | None) -> bool:
        """Stop before a bad step, or arrange that it changes nothing; returns whether it was bad."""
        if not self.guard.refuses(grad_norm):
            return False
        step = self.state.global_step + 1
        good = list_checkpoints(self.folder)
        seen = self.guard.explain(step, grad_norm, self.rows_of_step(step), good[-1] if good else None)
        if self.guard.num_skipped >= self.guard.max_skips:
            raise CheckFailed(seen)
        logger.warning("skipped: %s", seen)
        self.skip_step()
        return True

    def skip_step(self) -> None:
        """Arrange that the current step changes neither weights nor figures."""
        self.guard.num_skipped += 1
        self.guard.skipped_since_log += 1
        self.balance.counts.clear()
        if self._loss_before_step is not None:
            self._tr_loss.copy_(self._loss_before_step)
        if not self.guard.scales_loss():  # fp16's scaler skips the step; other optimizers skip what has no gradient
            self.model.zero_grad(set_to_none=True)

    def begin_step(self) -> None:
        """Remember the running loss, so that the step can be skipped in it."""
        self._loss_before_step = self._tr_loss.detach().clone()

    def end_step(self) -> None:
        """Note the time, and report a loss that jumped."""
        self.speed.note_time()
        report = self.guard.end_step()
        if report is not None and self.state.is_world_process_zero:
            step = self.state.global_step
            logger.warning("step %d gave %s. Its rows: %s", step, report, shorten(self.rows_of_step(step)))

    # The log.

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what the Trainer gives, how evenly experts were loaded at the last step, speed and memory."""
        if "loss" in logs:
            logs = self._without_skipped(logs) | self.balance.figures | self.speed.read()
        super().log(logs, *args, **kwargs)

    def _without_skipped(self, logs: dict[str, float]) -> dict[str, float]:
        """Return the figures with the loss averaged over the steps that were not skipped; without it if all were."""
        num_steps = self.state.global_step - self._last_log_step
        taken = num_steps - self.guard.skipped_since_log
        self._last_log_step, self.guard.skipped_since_log = self.state.global_step, 0
        if self.guard.max_skips == 0:
            return logs
        loss = {"loss": logs["loss"] * num_steps / taken} if taken else {}
        others = {name: value for name, value in logs.items() if name != "loss"}
        return loss | others | {"skipped_steps": float(self.guard.num_skipped)}


class _AroundSteps(TrainerCallback):
    """Calls the trainer around steps; transformers resets its running loss just before training begins."""

    def __init__(self, trainer: LadleTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin_step()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.end_step()


def _keep_dtypes_on_loading(optimizer: torch.optim.Optimizer) -> None:
    """Let `load_state_dict` give every tensor of the state the dtype it was saved in.

    torch casts each to its parameter's dtype. An optimizer that keeps float32 state for bfloat16 weights (Adafactor
    does) would resume from rounded values, and its run would no longer be the uninterrupted one.
    """
    saved: dict[int, dict[str, Any]] = {}

    def remember(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        saved.update(state_dict["state"])

    def restore(optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, entry in saved.items():
            state = optimizer.state[parameters[index]]
            for name, value in entry.items():
                if isinstance(value, torch.Tensor) and value.dtype != state[name].dtype:
                    state[name] = value.to(state[name].device)
        saved.clear()

    optimizer.register_load_state_dict_pre_hook(remember)
    optimizer.register_load_state_dict_post_hook(restore)
