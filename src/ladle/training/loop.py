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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import SaveStrategy, enable_full_determinism

from ladle.artifacts.files import pretty_json
from ladle.errors import Preempted, UserError
from ladle.log import ProgressBar, get_logger, progress
from ladle.models.load import load_model, save_model
from ladle.models.probe import find_routers
from ladle.training import checkpoint as checkpoints
from ladle.training.balance import BalanceExperts
from ladle.training.config import TrainingConfig
from ladle.training.guard import StepGuard, StopOnSignal, shorten
from ladle.training.order import StepOrder
from ladle.training.parallel import World, share_out
from ladle.training.progress import SHOWN, SHOWN_LOSSES, SPEED_FIGURES, Speedometer
from ladle.training.trackers import make_callbacks

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
        config: its section.
        task: what it optimises.
        model: what it trains: a model, or an adapter on one.
        tokenizer: saved beside the model.
        world: the processes.
        arguments: transformers'; checkpoints go to `output_dir`.
        router_bias_update_rate: how far routers' biases move towards balance in a step.
        extends: a finished training to take further.
    """

    def __init__(
        self,
        config: TrainingConfig,
        task: Task,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        world: World,
        arguments: TrainingArguments,
        router_bias_update_rate: float = 0.0,
        extends: Path | None = None,
    ) -> None:
        assert arguments.output_dir is not None
        self.config, self.task, self.tokenizer, self.extends = config, task, tokenizer, extends
        self.world, self.arguments = world, arguments
        routers = find_routers(cast(PreTrainedModel, model))  # by a forward pass, so before the weights are shared out
        self.balance = BalanceExperts(routers, router_bias_update_rate, world)
        self.parallel = share_out(config, model, world, arguments)
        self.model = self.parallel.module
        """The model that passes without gradient call."""
        self.folder = Path(arguments.output_dir)
        enable_full_determinism(arguments.seed) if arguments.full_determinism else set_seed(arguments.seed)
        self.worlds = [self.world.size]
        """How many processes trained, one after another."""
        self._plan(arguments.gradient_accumulation_steps)
        self.control, self.flow = TrainerControl(), DefaultFlowCallback()
        self.trackers = make_callbacks(arguments, self.folder.parent) if self.world.is_main else []
        self.guard, self.stop = StepGuard(config.max_skipped_steps), StopOnSignal()
        low = torch.float16 if arguments.fp16 else self.parallel.compute_dtype
        multiplied_in = low or next(model.parameters()).dtype
        self.speed = Speedometer(cast(PreTrainedModel, model), world.device, multiplied_in, world.size)
        self.bar: ProgressBar | None = None
        self.resumed_from_step = 0
        """The step of the checkpoint that this try resumed from; 0 where it began at the start."""
        self.sealing: Future[None] | None = None
        """A checkpoint that is written and not sealed yet, with `save_in_background`."""
        self.loss_sum, self.num_summed = 0.0, 0
        """This process's losses of the steps since the last log line, skipped ones left out, and their number."""
        self.grad_norm = self.learning_rate = 0.0
        self.total_loss, self.num_taken = 0.0, 0
        """The losses of all earlier steps, over all processes, and their number."""

    def _plan(self, accumulation: int) -> None:
        """Decide which rows each step takes, how many steps there are, and their schedule."""
        arguments, task, size = self.arguments, self.task, self.world.size
        processes = 1 if task.sees_whole_step else size
        rows = arguments.per_device_train_batch_size * size // processes
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        is_shuffled, drop_last = task.rows_are_shuffled, arguments.dataloader_drop_last
        self.order = StepOrder(task.num_rows, rows, accumulation, seed, is_shuffled, processes, drop_last)
        epochs = math.ceil(arguments.num_train_epochs * self.order.steps_per_epoch)
        self.max_steps = arguments.max_steps if arguments.max_steps > 0 else epochs
        warmup, options = arguments.get_warmup_steps(self.max_steps), cast(Any, arguments.lr_scheduler_kwargs)
        schedule = get_scheduler(arguments.lr_scheduler_type, self.parallel.optimizer, warmup, self.max_steps, options)
        self.schedule = cast(LambdaLR, schedule)  # the others do not follow from the step, and are refused
        epochs = math.ceil(self.max_steps / self.order.steps_per_epoch)
        self.state = TrainerState(max_steps=self.max_steps, num_train_epochs=epochs)
        self.state.compute_steps(arguments, self.max_steps)

    def run(self) -> None:
        """Train to the end.

        Raises:
            Preempted: a signal stopped it; a checkpoint of that step was saved.
            CheckFailed: a loss or gradient was not finite.
            UserError: the disk cannot hold a checkpoint, or a checkpoint is of another number of processes.
        """
        checkpoint, saved = self._find_checkpoint()
        done = self.resumed_from_step
        steps = self.task.steps(self, done + 1)
        if checkpoint is not None:
            self._load(checkpoint, saved)
        elif self.arguments.save_strategy != SaveStrategy.NO and self.world.is_main:
            checkpoints.require_free_space(self.folder, self._checkpoint_bytes(), "a checkpoint")
        with ExitStack() as stack:
            stack.enter_context(self.stop.listening())
            self.writer = stack.enter_context(ThreadPoolExecutor(1))
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
                self._finish_saving(waits=stops or step == self.max_steps)
                if stops and step < self.max_steps:
                    stopped = f"stopped at step {step} of {self.max_steps}, saved"
                    if self.arguments.save_only_model:
                        raise Preempted(f"{stopped}; save_only_model keeps nothing to resume from: it begins again")
                    raise Preempted(f"{stopped}; run the same command again to resume")
            taken = max(1, self.num_taken + self.num_summed)
            self._log({"train_loss": (self.total_loss + self._mean_loss_sum()) / taken})

    def _take_step(self, number: int, rows: Any) -> bool:
        """Take one optimizer step, or skip it; return whether any process was asked to stop."""
        parallel, before = self.parallel, self.task.state()
        learning_rate = self._set_learning_rate(number)
        parallel.module.train()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        passes = self.task.passes(self, rows)
        for index, one_pass in enumerate(passes):
            with parallel.accumulating(is_last=index == len(passes) - 1):
                self.balance.is_counting = True
                with parallel.computing():
                    loss = one_pass()
                self.balance.is_counting = False
                parallel.backward(loss)
            total += loss.detach()
        norm = parallel.clip()
        loss, grad_norm, num_bad, num_asked = self._read(total, norm)
        if num_bad:
            good = checkpoints.list_checkpoints(self.folder)
            self.guard.refuse(number, loss, grad_norm, self.order.rows(number), good[-1] if good else None)
            self.task.restore(before)
            self.balance.forget()
            parallel.skip()
        else:
            self.loss_sum, self.num_summed = self.loss_sum + loss, self.num_summed + 1
            self.grad_norm, self.learning_rate = grad_norm, learning_rate
            parallel.step()
            self.balance.after_step()
            if (report := self.guard.spikes.note(loss)) and self.world.is_main:
                logger.warning("step %d gave %s. Its rows: %s", number, report, shorten(self.order.rows(number)))
        self.speed.note_time()
        if self.bar is not None:
            self.bar.advance(1)
        return bool(num_asked)

    def _set_learning_rate(self, step: int) -> float:
        """Set the optimizer's learning rates to those of a step, and return the first group's."""
        schedule, groups = self.schedule, self.parallel.optimizer.param_groups
        for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(step - 1)
        return float(groups[0]["lr"])

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
        with torch.compiler.set_stance("force_eager"):  # of other shapes: compiling costs more than it saves
            figures = self.task.evaluate(self)
        self._log({f"eval_{name}": value for name, value in figures.items()})
        self.speed.start()

    def _log(self, figures: dict[str, float]) -> None:
        """Keep a line of the log, show it, and give it to the trackers."""
        state = self.state
        figures = figures | {"epoch": state.epoch}
        kept = {name: value for name, value in figures.items() if name not in SPEED_FIGURES}
        state.log_history.append(kept | {"step": state.global_step})
        self._tell_trackers("on_log", logs=figures)
        if not self.world.is_main:
            return
        place = f"step {state.global_step}/{self.max_steps}"
        if "eval_loss" in figures:
            logger.info("%s: held-out loss %.4f", place, figures["eval_loss"])
        elif "loss" in figures:
            shown = ", ".join(f"{key} {float(value):.4g}" for key, value in figures.items() if key != "epoch")
            logger.info("%s: %s", place, shown)
            note = ", ".join(text.format(figures[name]) for name, text in SHOWN.items() if name in figures)
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            cast(ProgressBar, self.bar).say(note, losses[-SHOWN_LOSSES:])

    def _tell_trackers(self, event: str, **what: Any) -> None:
        for tracker in self.trackers:
            getattr(tracker, event)(self.arguments, self.state, self.control, **what)

    # Checkpoints.

    def _find_checkpoint(self) -> tuple[Path | None, list[dict[str, Any]]]:
        """Return the newest checkpoint that verifies, and what each process that saved it had summed up.

        The first process looks, and tells the others.
        """
        found: list[Any] = [None]
        if self.world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            newest = checkpoints.newest_resumable(self.folder)
            checkpoints.remove_unfinished(self.folder, checkpoints.step_of(newest) if newest else 0)
            if newest is None and self.extends is not None:
                newest = checkpoints.newest_resumable(self.extends / checkpoints.TRAINING_STATE_FOLDER)
            found = [newest]
        if self.world.size > 1:
            torch.distributed.broadcast_object_list(found)
        checkpoint: Path | None = found[0]
        if checkpoint is None:
            return None, []
        self.resumed_from_step = checkpoints.step_of(checkpoint)
        logger.info("resuming from %s", checkpoint.name)
        files = [checkpoint / PROGRESS.format(rank) for rank in range(len(list(checkpoint.glob(PROGRESS.format("*")))))]
        saved = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        then, now = len(saved), self.world.size
        order = StepOrder(**saved[0]["order"])
        if checkpoint.parent != self.folder:
            self._refuse_other_rows(checkpoint, order)
        microbatches = order.accumulation * then
        if then != now:
            problem = f"{checkpoint} was saved by {then} processes and {now} are running"
            if not self.config.allow_other_world or not self.parallel.resumes_other_worlds:
                fix = f"set processes={then} as before, or allow_other_world=true (not with zero2)"
                raise UserError(f"{problem}: they would not end with the same bytes", fix)
            if microbatches % now:
                problem += f", which cannot share the {microbatches} microbatches of a step evenly"
                raise UserError(problem, f"resume with a number of processes that divides {microbatches}")
            logger.warning("%s: the result will not be bit-equal to that of an uninterrupted run", problem)
        if microbatches // now != self.order.accumulation:
            self._plan(microbatches // now)
        return checkpoint, saved

    def _refuse_other_rows(self, checkpoint: Path, order: StepOrder) -> None:
        """Check that a training can be extended from a checkpoint whose steps took their rows in `order`."""
        if self.resumed_from_step >= self.max_steps:
            problem = f"{checkpoint} has {self.resumed_from_step} steps already, of {self.max_steps}"
            raise UserError(problem, "raise trainer.max_steps, which counts from the first training's beginning")
        for name in ("num_rows", "seed", "rows_per_step"):
            if (then := getattr(order, name)) != (now := getattr(self.order, name)):
                problem = f"{checkpoint} has a place in other data: its {name} is {then}, here it is {now}"
                raise UserError(problem, "set mixture, seed and rows of a step as there, or start from its `model`")

    def _save(self, is_scheduled: bool) -> None:
        """Write weights first, then what resuming needs, into a staging folder; seal, and rotate the older ones."""
        self._finish_saving()
        state, rank = self.state, self.world.rank
        staged = self.folder / checkpoints.STAGING / f"checkpoint-{state.global_step}"
        if self.world.is_main:
            checkpoints.require_free_space(
                self.folder, self._checkpoint_bytes(), f"the checkpoint of step {state.global_step}"
            )
            shutil.rmtree(staged.parent, ignore_errors=True)
            staged.mkdir(parents=True)
        self.world.wait()
        self.save_weights(staged)
        if not self.arguments.save_only_model:
            self.parallel.save(staged)
            torch.save(_random_states(), staged / f"rng_state_{rank}.pth")
            (staged / PROGRESS.format(rank)).write_text(json.dumps(self._progress()))
            if self.world.is_main:
                state.save_to_json(str(staged / STATE))
        self.world.wait()
        if self.world.is_main:
            if not is_scheduled:
                (staged / checkpoints.PREEMPTED).write_text(pretty_json({"step": state.global_step}))
            self.sealing = self.writer.submit(self._seal, staged)
        self._finish_saving(waits=not self.config.save_in_background)
        self._tell_trackers("on_save")

    def _seal(self, staged: Path) -> None:
        checkpoints.seal(staged, self.folder)
        checkpoints.rotate(self.folder, self.config)

    def _finish_saving(self, waits: bool = True) -> None:
        """Wait for the checkpoint that is being sealed, or only look; raises what went wrong with it."""
        if self.sealing is not None and (waits or self.sealing.done()):
            sealing, self.sealing = self.sealing, None
            sealing.result()
        if waits:
            self.world.wait()

    def save_weights(self, folder: Path) -> None:
        """Write the model, or the adapter on it, and the tokenizer; every process calls it."""
        weights = self.parallel.whole_weights()
        if self.world.is_main:
            save_model(cast(PreTrainedModel, self.model), self.tokenizer, folder, self.config.dtype, weights)

    def _load(self, checkpoint: Path, saved: list[dict[str, Any]]) -> None:
        """Restore everything that `_save` wrote."""
        rank = self.world.rank
        if not self.parallel.restores_weights:
            _load_weights(self.model, checkpoint)
        self.parallel.load(checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        self.state.global_step, self.state.epoch = state.global_step, state.epoch
        self.state.log_history = state.log_history
        if checkpoint.parent != self.folder:
            then, now = self.parallel.optimizer.param_groups[0]["lr"], self._set_learning_rate(state.global_step + 1)
            schedule = (
                f"{self.config.trainer.get('lr_scheduler_type')} over {self.max_steps} steps, not {state.max_steps}"
            )
            logger.info("the schedule is %s: the learning rate was %.3g and is %.3g", schedule, then, now)
        # of another number of processes, what all of them had summed up
        found = saved[rank if len(saved) == self.world.size else 0]
        if len(saved) != self.world.size:
            found["loss_sum"] = sum(one["loss_sum"] for one in saved) / len(saved)
            for name in found["task"]:
                found["task"][name] = sum(one["task"][name] for one in saved) if self.world.is_main else 0.0
        self.loss_sum, self.num_summed = found["loss_sum"], found["num_summed"]
        self.total_loss, self.num_taken = found["total_loss"], found["num_taken"]
        self.guard.restore(found["guard"])
        self.task.restore(found["task"])
        self.worlds = found["worlds"] + ([] if found["worlds"][-1] == self.world.size else [self.world.size])
        then, now = found["threads"], torch.get_num_threads()
        if now != then and self.world.device.type == "cpu":
            problem = f"the checkpoint was saved by {then} threads per process and {now} are running"
            logger.warning(
                "%s: sums round otherwise. For an uninterrupted run's, set OMP_NUM_THREADS=%d", problem, then
            )
        _restore_random_states(torch.load(checkpoint / f"rng_state_{rank % len(saved)}.pth", weights_only=False))

    def _progress(self) -> dict[str, Any]:
        return {
            "loss_sum": self.loss_sum,
            "num_summed": self.num_summed,
            "total_loss": self.total_loss,
            "num_taken": self.num_taken,
            "guard": self.guard.state(),
            "task": self.task.state(),
            "worlds": self.worlds,
            "order": asdict(self.order),
            "threads": torch.get_num_threads(),
        }

    def _checkpoint_bytes(self) -> int:
        """Estimate a checkpoint's size: the weights, and twice the trainable ones in float32 for AdamW.

        Shards and DeepSpeed hold float32 weights beside them. Where only the model is saved, it is the weights alone.
        """
        size = getattr(torch, self.config.dtype).itemsize
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
