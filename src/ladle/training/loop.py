"""The training loop that pretraining and KTO share, one optimizer step after another, each bit the same when resumed.

    rows of the step → passes → gradients → clip → guard → optimizer → router biases → schedule → log → evaluate → save

`trainer:` takes transformers.TrainingArguments by their own names, and what they decide is decided as its Trainer does
(schedule, weight decay, logging, saving and evaluation, whose rules are transformers' own), except that

- checkpoints are sealed before they have a name, and the newest one that verifies is resumed (the Trainer takes
  half-written ones);
- weights are loaded with every parameter and buffer accounted for (the Trainer drops DeepSeek-V3's routed experts);
- a loss or gradient that is not finite stops the run before the optimizer uses it (the Trainer logs 0.0 and saves NaN);
- rows are found by arithmetic on the step, not by replaying batches, and the logged loss survives a resumption.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import SaveStrategy, enable_full_determinism

from ladle.artifacts.files import pretty_json
from ladle.errors import Preempted, UserError
from ladle.log import ProgressBar, get_logger, progress
from ladle.models.load import load_model, save_model
from ladle.training.balance import BalanceExperts
from ladle.training.checkpoint import (
    PREEMPTED,
    STAGING,
    Rotation,
    list_checkpoints,
    newest_resumable,
    remove_unfinished,
    require_free_space,
    rotate,
    seal,
    step_of,
)
from ladle.training.guard import StepGuard, StopOnSignal, shorten
from ladle.training.order import StepOrder
from ladle.training.parallel import Parallel
from ladle.training.progress import SHOWN, Speedometer

logger = get_logger(__name__)

STATE, PROGRESS = "trainer_state.json", "progress_{}.json"
Pass = Callable[[], torch.Tensor]


class Task(ABC):
    """What a training optimises, and on which rows.

    Attributes:
        num_rows: rows of its data.
        rows_are_shuffled: they are in random order already.
        sees_whole_step: every process is given all rows of a step and shares the work out itself.
    """

    num_rows: int
    rows_are_shuffled = False
    sees_whole_step = False

    @abstractmethod
    def steps(self, training: Training, first: int) -> Iterator[Any]:
        """Yield what each step from `first` on needs of the data."""

    @abstractmethod
    def passes(self, training: Training, step: Any) -> Sequence[Pass]:
        """Return the step's forward passes on this process, as many as on the others.

        Each gives a part of this process's loss, whose mean over the processes is the step's loss.
        """

    @abstractmethod
    def evaluate(self, training: Training) -> dict[str, float]:
        """Return the figures of the held-out data, `loss` among them, the same on every process."""

    def figures(self, training: Training) -> dict[str, float]:
        """Return what to log beside the loss, of the steps since the last call; every process calls it."""
        return {}

    def state(self) -> dict[str, float]:
        """Return what a resumed run has to know, as sums by name; also what a skipped step is undone with."""
        return {}

    def restore(self, state: dict[str, float]) -> None:  # noqa: B027
        """Restore what `state` returned."""


class Training:
    """One training, from its start or from where an earlier try stopped.

    Args:
        task: what it optimises.
        parallel: the model and its optimizer, on the processes.
        tokenizer: saved beside the model.
        arguments: transformers'; checkpoints go to `output_dir`.
        keep: which older checkpoints to keep, whole or as model-only copies.
        dtype: of the weights as saved.
        balance: measures how experts are loaded, and moves the routers' biases.
        max_skipped_steps: steps that may be skipped for a loss or gradient that is not finite; 0 stops at the first.
        allow_other_world: resume a checkpoint of another number of processes.
    """

    def __init__(
        self,
        task: Task,
        parallel: Parallel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: TrainingArguments,
        keep: Rotation,
        dtype: str,
        balance: BalanceExperts,
        max_skipped_steps: int = 0,
        allow_other_world: bool = False,
    ) -> None:
        assert arguments.output_dir is not None
        self.task, self.parallel, self.world, self.tokenizer = task, parallel, parallel.world, tokenizer
        self.arguments, self.keep, self.dtype = arguments, keep, dtype
        self.folder = Path(arguments.output_dir)
        enable_full_determinism(arguments.seed) if arguments.full_determinism else set_seed(arguments.seed)
        self.allow_other_world = allow_other_world
        self.worlds = [self.world.size]
        """How many processes trained, one after another."""
        self._plan(arguments.gradient_accumulation_steps)
        self.control, self.flow = TrainerControl(), DefaultFlowCallback()
        trackers = get_reporting_integration_callbacks(arguments.report_to) if self.world.is_main else []
        self.trackers = [tracker() for tracker in trackers]
        self.guard, self.stop = StepGuard(max_skipped_steps), StopOnSignal()
        self.balance = balance
        low = torch.float16 if arguments.fp16 else parallel.compute_dtype
        multiplied_in = low or next(parallel.module.parameters()).dtype
        self.speed = Speedometer(
            cast(PreTrainedModel, parallel.module), self.world.device, multiplied_in, self.world.size
        )
        self.bar: ProgressBar | None = None
        self.resumed_from: Path | None = None
        self.loss_sum, self.num_summed = 0.0, 0
        """This process's losses of the steps since the last log line, skipped ones left out, and their number."""
        self.grad_norm = self.learning_rate = 0.0
        self.total_loss, self.num_taken = 0.0, 0
        """The losses of all earlier steps, over all processes, and their number."""

    def _plan(self, accumulation: int) -> None:
        """Decide which rows each step takes, how many steps there are, and their schedule."""
        arguments, task, size = self.arguments, self.task, self.world.size
        self.order = StepOrder(
            task.num_rows,
            arguments.per_device_train_batch_size * (size if task.sees_whole_step else 1),
            accumulation,
            arguments.seed if arguments.data_seed is None else arguments.data_seed,
            task.rows_are_shuffled,
            1 if task.sees_whole_step else size,
            arguments.dataloader_drop_last,
        )
        steps = arguments.max_steps
        self.max_steps = steps if steps > 0 else math.ceil(arguments.num_train_epochs * self.order.steps_per_epoch)
        self.schedule = get_scheduler(
            arguments.lr_scheduler_type,
            self.parallel.optimizer,
            arguments.get_warmup_steps(self.max_steps),
            self.max_steps,
            scheduler_specific_kwargs=cast(Any, arguments.lr_scheduler_kwargs),
        )
        self.state = TrainerState(
            max_steps=self.max_steps,
            num_train_epochs=math.ceil(self.max_steps / self.order.steps_per_epoch),
            train_batch_size=arguments.per_device_train_batch_size,
            is_world_process_zero=self.world.is_main,
            is_local_process_zero=self.world.is_main,
        )
        self.state.compute_steps(arguments, self.max_steps)

    @property
    def model(self) -> nn.Module:
        """The model that passes without gradient call."""
        return self.parallel.module

    @property
    def resumed_from_step(self) -> int:
        """The step of the checkpoint that this try resumed from; 0 where it began at the start."""
        return step_of(self.resumed_from) if self.resumed_from else 0

    def run(self) -> None:
        """Train to the end.

        Raises:
            Preempted: a signal stopped it; a checkpoint of that step was saved.
            CheckFailed: a loss or gradient was not finite.
            UserError: the disk cannot hold a checkpoint, or a checkpoint is of another number of processes.
        """
        self._find_checkpoint()
        done = self.resumed_from_step
        steps = self.task.steps(self, done + 1)
        if self.resumed_from is not None:
            self._load(self.resumed_from)
        elif self.arguments.save_strategy != SaveStrategy.NO and self.world.is_main:
            require_free_space(self.folder, self._checkpoint_bytes(), "a checkpoint")
        with ExitStack() as stack:
            stack.enter_context(self.stop.listening())
            if self.world.is_main:
                self.bar = stack.enter_context(progress(self.max_steps, "training", "steps"))
                self.bar.advance(done)
            self._tell_trackers("on_train_begin", model=self.model)
            stack.callback(self._tell_trackers, "on_train_end")
            if self.arguments.eval_on_start and not done:
                self._evaluate()
            self.speed.start()
            self.speed.note_time()
            for step in range(done + 1, self.max_steps + 1):
                stops = self._take_step(step, next(steps))
                self.state.global_step, self.state.epoch = step, self.order.epochs_after(step)
                self._log_evaluate_save(stops)
                if stops and step < self.max_steps:
                    saved = f"stopped at step {step} of {self.max_steps}, saved"
                    raise Preempted(f"{saved}; run the same command again to resume")
            taken = max(1, self.num_taken + self.num_summed)
            self._log({"train_loss": (self.total_loss + self._mean_loss_sum()) / taken})

    def _take_step(self, number: int, rows: Any) -> bool:
        """Take one optimizer step, or skip it; return whether any process was asked to stop."""
        parallel, before = self.parallel, self.task.state()
        parallel.module.train()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        passes = self.task.passes(self, rows)
        for index, one_pass in enumerate(passes):
            with parallel.accumulating(is_last=index == len(passes) - 1):
                with parallel.computing():
                    loss = one_pass()
                parallel.backward(loss)
            total += loss.detach()
        norm = parallel.clip()
        loss, grad_norm, num_bad, num_asked = self._read(total, norm)
        if num_bad:
            good = list_checkpoints(self.folder)
            self.guard.refuse(number, loss, grad_norm, self.order.rows(number), good[-1] if good else None)
            self.task.restore(before)
            self.balance.counts.clear()
            parallel.drop_gradients()
        else:
            self.loss_sum, self.num_summed = self.loss_sum + loss, self.num_summed + 1
            self.grad_norm, self.learning_rate = grad_norm, float(self.schedule.get_last_lr()[0])
            parallel.step()
            self.balance.after_step()
            if (report := self.guard.spikes.note(loss)) and self.world.is_main:
                logger.warning("step %d gave %s. Its rows: %s", number, report, shorten(self.order.rows(number)))
        self.schedule.step()
        self.speed.note_time()
        if self.bar is not None:
            self.bar.advance(1)
        return bool(num_asked)

    def _read(self, total: torch.Tensor, norm: torch.Tensor) -> tuple[float, float, float, float]:
        """Return this process's loss, the gradient norm, how many processes have a bad one, and how many must stop.

        Everything that a step needs to know of the device is read here, at once.
        """
        norm = norm.to(total)
        is_bad = ~total.isfinite()
        if self.parallel.scaler is None:  # fp16's scaler expects an overflow now and then, and skips the step
            is_bad = is_bad | ~norm.isfinite()
        flags = torch.stack([is_bad.to(total), torch.full_like(total, float(self.stop.is_asked))])
        loss, grad_norm, num_bad, num_asked = torch.cat([torch.stack([total, norm]), self.world.sum(flags)]).tolist()
        return loss, grad_norm, num_bad, num_asked

    # What follows a step.

    def _log_evaluate_save(self, stops: bool) -> None:
        control, state, arguments = self.control, self.state, self.arguments
        self.flow.on_step_end(arguments, state, control)
        if state.global_step % self.order.steps_per_epoch == 0 or state.global_step == self.max_steps:
            self.flow.on_epoch_end(arguments, state, control)
        is_scheduled = control.should_save
        if control.should_log:
            self._log_step()
        if control.should_evaluate:
            self._evaluate()
        if is_scheduled or stops:
            if stops and self.world.is_main:
                logger.warning("asked to stop: saving at step %d", state.global_step)
            self._save(is_scheduled)
        control.should_log = control.should_evaluate = control.should_save = False

    def _log_step(self) -> None:
        figures: dict[str, float] = {}
        if self.num_summed:
            mean = self._mean_loss_sum()
            self.total_loss, self.num_taken = self.total_loss + mean, self.num_taken + self.num_summed
            figures = {"loss": mean / self.num_summed, "grad_norm": self.grad_norm, "learning_rate": self.learning_rate}
            self.loss_sum, self.num_summed = 0.0, 0
        if self.guard.max_skips:
            figures["skipped_steps"] = float(self.guard.num_skipped)
        figures |= self.task.figures(self) | self.balance.figures | self.speed.read()
        self._log(figures)

    def _mean_loss_sum(self) -> float:
        summed = torch.tensor(self.loss_sum, dtype=torch.float64, device=self.world.device)
        return self.world.sum(summed).item() / self.world.size

    def _evaluate(self) -> None:
        figures = self.task.evaluate(self)
        self._log({f"eval_{name}": value for name, value in figures.items()})
        self.speed.start()

    def _log(self, figures: dict[str, float]) -> None:
        """Keep a line of the log, show it, and give it to the trackers."""
        state = self.state
        figures = figures | {"epoch": state.epoch}
        state.log_history.append(figures | {"step": state.global_step})
        self._tell_trackers("on_log", logs=figures)
        if not self.world.is_main:
            return
        place = f"step {state.global_step}/{self.max_steps}"
        if "loss" in figures:
            shown = ", ".join(f"{key} {float(value):.4g}" for key, value in figures.items() if key != "epoch")
            logger.info("%s: %s", place, shown)
            if self.bar is not None:
                self.bar.say(", ".join(text.format(figures[name]) for name, text in SHOWN.items() if name in figures))
        elif "eval_loss" in figures:
            logger.info("%s: held-out loss %.4f", place, figures["eval_loss"])

    def _tell_trackers(self, event: str, **what: Any) -> None:
        for tracker in self.trackers:
            getattr(tracker, event)(self.arguments, self.state, self.control, **what)

    # Checkpoints.

    def _find_checkpoint(self) -> None:
        """Take the newest checkpoint that verifies; the first process looks, and tells the others."""
        found: list[Any] = [None]
        if self.world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint = newest_resumable(self.folder)
            remove_unfinished(self.folder, step_of(checkpoint) if checkpoint else 0)
            found = [checkpoint]
        if self.world.size > 1:
            torch.distributed.broadcast_object_list(found)
        self.resumed_from = found[0]
        if self.resumed_from is None:
            return
        logger.info("resuming from %s", self.resumed_from.name)
        then, now = len(list(self.resumed_from.glob(PROGRESS.format("*")))), self.world.size
        saved = json.loads((self.resumed_from / PROGRESS.format(0)).read_text(encoding="utf-8"))
        microbatches = saved["accumulation"] * then
        if then != now:
            problem = f"{self.resumed_from} was saved by {then} processes and {now} are running"
            if not self.allow_other_world or not self.parallel.resumes_other_worlds:
                fix = f"set processes={then} as before, or allow_other_world=true (not with zero2)"
                raise UserError(f"{problem}: they would not end with the same bytes", fix)
            if microbatches % now:
                problem += f", which cannot share the {microbatches} microbatches of a step evenly"
                raise UserError(problem, f"resume with a number of processes that divides {microbatches}")
            logger.warning("%s: the result will not be bit-equal to that of an uninterrupted run", problem)
        if microbatches // now != self.order.accumulation:
            self._plan(microbatches // now)

    def _save(self, is_scheduled: bool) -> None:
        """Write weights first, then what resuming needs, into a staging folder; seal, and rotate the older ones."""
        state, rank = self.state, self.world.rank
        staged = self.folder / STAGING / f"checkpoint-{state.global_step}"
        if self.world.is_main:
            require_free_space(self.folder, self._checkpoint_bytes(), f"the checkpoint of step {state.global_step}")
            shutil.rmtree(staged.parent, ignore_errors=True)
            staged.mkdir(parents=True)
        self.world.wait()
        self.save_weights(staged)
        if not self.arguments.save_only_model:
            self.parallel.save(staged)
            torch.save(_random_states(), staged / f"rng_state_{rank}.pth")
            (staged / PROGRESS.format(rank)).write_text(json.dumps(self._progress()))
            if self.world.is_main:
                torch.save(self.schedule.state_dict(), staged / "scheduler.pt")
                state.save_to_json(str(staged / STATE))
        self.world.wait()
        if self.world.is_main:
            if not is_scheduled:
                (staged / PREEMPTED).write_text(pretty_json({"step": state.global_step}))
            seal(staged, self.folder)
            rotate(self.folder, self.keep)
        self.world.wait()
        self._tell_trackers("on_save")

    def save_weights(self, folder: Path) -> None:
        """Write the model, or the adapter on it, and the tokenizer; every process calls it."""
        weights = self.parallel.whole_weights()
        if self.world.is_main:
            save_model(cast(PreTrainedModel, self.model), self.tokenizer, folder, self.dtype, weights)

    def _load(self, checkpoint: Path) -> None:
        """Restore everything that `_save` wrote."""
        rank = self.world.rank
        if not self.parallel.saves_weights_in_shards:
            _load_weights(self.model, checkpoint)
        self.parallel.load(checkpoint)
        self.schedule.load_state_dict(torch.load(checkpoint / "scheduler.pt", weights_only=True))
        saved = TrainerState.load_from_json(str(checkpoint / STATE))
        self.state.global_step, self.state.epoch = saved.global_step, saved.epoch
        self.state.log_history = saved.log_history
        found = self._read_progress(checkpoint)
        self.loss_sum, self.num_summed = found["loss_sum"], found["num_summed"]
        self.total_loss, self.num_taken = found["total_loss"], found["num_taken"]
        self.guard.restore(found["guard"])
        self.task.restore(found["task"])
        self.worlds = found["worlds"] + ([] if found["worlds"][-1] == self.world.size else [self.world.size])
        then, now = found["threads"], torch.get_num_threads()
        if now != then and self.world.device.type == "cpu":
            logger.warning(
                "the checkpoint was saved by %d threads per process and %d are running: sums round differently, so "
                "the result will not be that of an uninterrupted run. For that, set OMP_NUM_THREADS=%d",
                then, now, then,
            )  # fmt: skip
        saved_by = len(list(checkpoint.glob(PROGRESS.format("*"))))
        _restore_random_states(torch.load(checkpoint / f"rng_state_{rank % saved_by}.pth", weights_only=False))

    def _read_progress(self, checkpoint: Path) -> dict[str, Any]:
        """Return what this process had summed up; in another number of processes, what all of them had."""
        files = [checkpoint / PROGRESS.format(rank) for rank in range(len(list(checkpoint.glob(PROGRESS.format("*")))))]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if len(found) == self.world.size:
            return found[self.world.rank]
        summed = {name: sum(one["task"][name] for one in found) for name in found[0]["task"]}
        mine = summed if self.world.is_main else dict.fromkeys(summed, 0.0)
        return found[0] | {"loss_sum": sum(one["loss_sum"] for one in found) / len(found), "task": mine}

    def _progress(self) -> dict[str, Any]:
        return {
            "loss_sum": self.loss_sum,
            "num_summed": self.num_summed,
            "total_loss": self.total_loss,
            "num_taken": self.num_taken,
            "guard": self.guard.state(),
            "task": self.task.state(),
            "worlds": self.worlds,
            "accumulation": self.order.accumulation,
            "threads": torch.get_num_threads(),
        }

    def _checkpoint_bytes(self) -> int:
        """Estimate a checkpoint's size: the weights, and twice the trainable ones in float32 for AdamW.

        Shards and DeepSpeed hold float32 weights beside them. Where only the model is saved, it is the weights alone.
        """
        size = torch.empty((), dtype=getattr(torch, self.dtype)).element_size()
        weights = size * sum(weight.numel() for weight in self.model.parameters())
        trainable = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        if self.arguments.save_only_model:
            return weights
        return weights + (12 if self.parallel.splits_optimizer else 8) * trainable


def _load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's weights so that every parameter and buffer is accounted for."""
    if not hasattr(model, "peft_config"):
        saved = load_model(checkpoint, "auto", "eager")
        model.load_state_dict(saved.state_dict(), strict=True)
        return
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(checkpoint), device="cpu")
    if weights.keys() != get_peft_model_state_dict(model).keys():
        raise UserError(f"the adapter in {checkpoint} does not fit the recipe's", "start afresh in another folder")
    set_peft_model_state_dict(model, weights)


def _random_states() -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
