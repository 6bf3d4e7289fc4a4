"""Continued pretraining on a mixture, and the exact loss on its held-out rows.

That loss is what training reports where `eval_strategy` says so, what soups are selected by and what KTO is gated on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments

from ladle.artifacts.plan import diff_values
from ladle.artifacts.record import read_record
from ladle.data.store import IGNORED_LABEL, MixedDataset
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.attention import to_device
from ladle.models.chat import ensure_chat_template
from ladle.models.config import choose_dtype, model_dir
from ladle.models.load import load_model
from ladle.models.probe import find_routers, probe, require_positions, warn_of
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult
from ladle.training.adapter import add_adapter, load_start, save_trained
from ladle.training.arguments import use_liger_where_it_can_run
from ladle.training.balance import SequenceAuxLoss
from ladle.training.checkpoint import TRAINING_STATE_FOLDER, keep_training_state, list_checkpoints
from ladle.training.config import NextTokenConfig
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.loop import Pass, Task, Training
from ladle.training.packed_rows import collate_packed
from ladle.training.parallel import World
from ladle.training.run import Prepared, run_training

logger = get_logger(__name__)


def run(config: NextTokenConfig, inputs: Inputs, out: Path) -> StageResult:
    """Train `model` on `mixture`, from the newest valid checkpoint in `out` if there is one."""
    prepare = partial(_prepare, config, inputs, out)
    return run_training(config, out, prepare, config.router_bias_update_rate)


def _prepare(
    config: NextTokenConfig, inputs: Inputs, out: Path, arguments: TrainingArguments, world: World
) -> Prepared:
    dataset, start = MixedDataset(inputs["mixture"][0]), inputs["model"][0]
    changes = describe_extension(config, start) if config.extends else {}
    model = load_start(start, config.quantization, config.weights_dtype, config.attn_implementation, world.device)
    model.config.use_cache = False
    require_positions(model, longest_document(dataset, model))
    traits = warn_of(model, probe(model, config.batch_size, config.autocast))
    if traits.why_apart and config.distributed == "fsdp" and world.size > 1:
        kind, why = type(model).__name__, "processes run different numbers of passes and fsdp would hang"
        problem = f"{kind} takes each document as a row of its own ({traits.why_apart}), so that {why}"
        raise UserError(problem, "set distributed: ddp")
    aux_loss = None
    if config.sequence_aux_loss:
        if not (routers := find_routers(model)):
            problem = f"sequence_aux_loss has no effect: {type(model).__name__} has no router with a balancing bias"
            raise UserError(problem, "leave it out, or set output_router_logits in the model's config.json")
        aux_loss = SequenceAuxLoss(routers, config.sequence_aux_loss)
    use_linear_cross_entropy(model, traits, aux_loss)
    if dataset.vocab_size > model.config.vocab_size:
        problem = f"the mixture's vocabulary has {dataset.vocab_size} tokens and the model's {model.config.vocab_size}"
        fix = "mix again with this model's tokenizer, or train the model that the mixture was made for"
        raise UserError(problem, fix)
    use_liger_where_it_can_run(arguments, model)
    tokenizer = load_fast_tokenizer(model_dir(start))
    if dataset.mixture.get("conversational"):
        ensure_chat_template(tokenizer)
    held_out = MixedDataset(dataset.path, "validation") if arguments.eval_strategy != "no" else None

    def save(training: Training) -> None:
        model.config.use_cache = True
        save_trained(training, start, config, out)
        if config.keep_training_state and world.is_main:
            keep_training_state(training.folder, out)

    def summarise(training: Training) -> StageResult:
        log = training.state.log_history
        metrics: dict[str, Any] = {"attn_implementation": model.config._attn_implementation} | traits.choices()
        if losses := [entry["loss"] for entry in log if "loss" in entry]:
            metrics |= {"first_loss": losses[0], "last_loss": losses[-1]}
        if losses := [entry["eval_loss"] for entry in log if "eval_loss" in entry]:
            metrics["last_eval_loss"] = losses[-1]
        if config.extends:
            metrics["extends"] = changes
        tokens = training.state.global_step * training.order.rows_per_step * dataset.sequence_length
        return StageResult({"tokens": tokens}, metrics)

    task, extends = PretrainTask(dataset, held_out, aux_loss), start if config.extends else None
    trained = add_adapter(model, config, arguments.seed)
    return Prepared(task, trained, tokenizer, save, summarise, extends)


def describe_extension(config: NextTokenConfig, start: Path) -> dict[str, str]:
    """Return what a training changes of the finished one that it extends, by key, and log it.

    Raises:
        UserError: that one has no training state.
    """
    if not list_checkpoints(start / TRAINING_STATE_FOLDER):
        problem = f"{start} has no training state, so there is nothing to extend: a finished training keeps models only"
        fix = (
            f"train it again with pretrain.keep_training_state=true, or start from its weights: pretrain.model={start}"
        )
        raise UserError(problem, fix)
    differences = diff_values(read_record(start)["identity"]["config"], config.identity())
    changes = {key: f"{old} → {new}" for key, old, new in differences}
    logger.info("extending %s: %s", start, ", ".join(f"{key} {change}" for key, change in changes.items()))
    return changes


class PretrainTask(Task):
    """Cross-entropy of every labelled token of a mixture's rows, averaged over the tokens of a step.

    Args:
        dataset: the mixture's rows.
        held_out: its validation split, where it is evaluated on.
        aux_loss: the sequence-wise balance loss that the model's forward adds, for the log; None if it adds none.
    """

    rows_are_shuffled = True

    def __init__(
        self, dataset: Any, held_out: MixedDataset | None = None, aux_loss: SequenceAuxLoss | None = None
    ) -> None:
        self.dataset, self.held_out, self.aux_loss = dataset, held_out, aux_loss
        self.num_rows = len(dataset)

    def steps(self, training: Training, first: int) -> Iterator[list[dict[str, torch.Tensor]]]:
        """Yield the microbatches of each step, on the training's device."""
        arguments, order, device = training.arguments, training.order, training.world.device
        loader = DataLoader(
            self.dataset,
            batch_sampler=order.from_step(first, training.max_steps, training.world.rank),  # type: ignore[arg-type]
            collate_fn=collate_packed,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=arguments.dataloader_pin_memory and device.type == "cuda",
            prefetch_factor=arguments.dataloader_prefetch_factor,
            generator=torch.Generator(),  # so that the workers' seeds leave the training's random numbers alone
        )
        batches = iter(loader)
        for step in range(first, training.max_steps + 1):
            rows = islice(batches, len(order.microbatches(step)))
            yield [to_device(batch, device) for batch in rows]

    def passes(self, training: Training, step: list[dict[str, torch.Tensor]]) -> list[Pass]:
        """Return a pass for each microbatch; their losses add up to the mean over the step's tokens."""
        world = training.world
        labels = torch.stack([(batch["labels"][:, 1:] != IGNORED_LABEL).sum() for batch in step]).sum()
        num_items = world.sum(labels)

        def one_pass(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            training.speed.count(batch)
            return training.parallel.model(**batch, num_items_in_batch=num_items).loss * world.size

        return [partial(one_pass, batch) for batch in step]

    @torch.no_grad()
    def evaluate(self, training: Training) -> dict[str, float]:
        """Return the mean loss in nats over every labelled token of the validation split.

        Its rows are shared among the processes; each token counts once, whatever the batches.
        """
        assert self.held_out is not None
        world, batch_size = training.world, training.arguments.per_device_eval_batch_size
        with training.parallel.computing():
            sums = held_out_loss_sum(
                cast(PreTrainedModel, training.model), self.held_out, batch_size, world.rank, world.size
            )
        total, count = world.sum(torch.tensor(sums, dtype=torch.float64, device=world.device)).tolist()
        return {"loss": total / count, "tokens": count}

    def figures(self, training: Training) -> dict[str, float]:
        """Return the balance loss of the last microbatch."""
        return {} if self.aux_loss is None else {"experts/sequence_aux_loss": self.aux_loss.last.item()}


def longest_document(dataset: MixedDataset, model: PreTrainedModel) -> int:
    """Return the tokens of the longest document, or a bound of them that the model has positions for."""
    if dataset.sequence_length <= (getattr(model.config, "max_position_embeddings", None) or 0):
        return dataset.sequence_length
    return max(int(dataset[row]["position_ids"].max()) for row in range(len(dataset))) + 1


@torch.no_grad()
def held_out_loss_sum(
    model: PreTrainedModel, dataset: MixedDataset, batch_size: int, process: int = 0, num_processes: int = 1
) -> tuple[float, int]:
    """Return the summed cross-entropy in nats over every labelled token of this process's rows, and their number.

    The model, prepared by `use_linear_cross_entropy`, is left in the mode (training or not) it was in. Every process
    runs as many passes as the others, since those of shards work together; one without a row counts nothing of its own.
    """
    was_training = model.training
    model.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=model.device), 0
    rows = range(process, len(dataset), num_processes)
    for start in range(0, -(-len(dataset) // num_processes), batch_size):
        mine = rows[start : start + batch_size]
        batch = collate_packed([dataset[row] for row in mine or [0]])
        loss_sum = model(**to_device(batch, model.device), num_items_in_batch=1).loss
        if mine:
            total, count = total + loss_sum, count + int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
    model.train(was_training)
    return total.item(), count


def validation_loss(
    folder: Path, data_dir: Path, batch_size: int = 8, split: str = "validation", dtype: str | None = None
) -> float:
    """Return the mean cross-entropy in nats per token of a model over every labelled token of a split, on a GPU if any.

    Args:
        folder: the model's.
        data_dir: a mixture.
        batch_size: rows at once; it does not change the result beyond rounding.
        split: of the mixture.
        dtype: of the weights, as in `choose_dtype`.
    """
    model, dataset = load_model(folder, choose_dtype(dtype)), MixedDataset(data_dir, split)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[reportArgumentType]
    require_positions(model, longest_document(dataset, model))
    use_linear_cross_entropy(model, warn_of(model, probe(model)))
    total, count = held_out_loss_sum(model, dataset, batch_size)
    return total / count
