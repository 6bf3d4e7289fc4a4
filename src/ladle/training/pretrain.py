"""Continued pretraining on a mixture, and the exact loss on its held-out rows.

That loss is what training reports where `eval_strategy` says so, what soups are selected by and what KTO is gated on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ladle.data.store import MixedDataset
from ladle.errors import UserError
from ladle.models.load import copy_out_of_file, load_model, model_dir, save_model
from ladle.models.probe import Traits, find_routers, probe, require_positions, warn_of
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult
from ladle.training.arguments import drop_liger_where_it_cannot_run, make_arguments
from ladle.training.attention import collate_packed, use_fused_attention
from ladle.training.balance import SequenceAuxLoss
from ladle.training.checkpoint import Rotation
from ladle.training.config import PretrainConfig
from ladle.training.cross_entropy import loss_of_rows, use_linear_cross_entropy
from ladle.training.processes import reduce_tensor
from ladle.training.run import Prepared, run_training
from ladle.training.trainer import LadleTrainer


def run(config: PretrainConfig, inputs: Inputs, out: Path) -> StageResult:
    """Train `model` on `mixture`, from the newest valid checkpoint in `out` if there is one."""
    return run_training(config, out, lambda keep: _prepare(config, inputs, out, keep))


def _prepare(config: PretrainConfig, inputs: Inputs, out: Path, keep: Rotation) -> Prepared:
    dataset = MixedDataset(inputs["mixture"][0])
    model = load_model(inputs["model"][0], config.dtype, config.attn_implementation)
    copy_out_of_file(model)
    model.config.use_cache = False
    require_positions(model, longest_document(dataset, model))
    arguments = make_arguments(config, out)
    model.to(device=arguments.device)  # type: ignore[reportCallIssue]
    use_fused_attention(model)
    traits = warn_of(model, probe(model, arguments.per_device_train_batch_size))
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
    tokenizer = load_fast_tokenizer(model_dir(inputs["model"][0]))
    drop_liger_where_it_cannot_run(arguments, model)
    trainer = PretrainTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=MixedDataset(dataset.path, "validation") if arguments.do_eval else None,
        data_collator=collate_packed,
        processing_class=tokenizer,
        keep=keep,
        rows_are_shuffled=True,
        router_bias_update_rate=config.router_bias_update_rate,
        max_skipped_steps=config.max_skipped_steps,
        traits=traits,
        aux_loss=aux_loss,
    )

    def summarise() -> StageResult:
        metrics: dict[str, Any] = {"attn_implementation": model.config._attn_implementation} | traits.choices()
        if losses := [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]:
            metrics |= {"first_loss": losses[0], "last_loss": losses[-1]}
        if held_out := [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]:
            metrics["last_eval_loss"] = held_out[-1]
        rows_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        return StageResult({"tokens": trainer.state.global_step * rows_per_step * dataset.sequence_length}, metrics)

    return Prepared(trainer, model, lambda: save_model(model, tokenizer, out / "model"), summarise)


class PretrainTrainer(LadleTrainer):
    """LadleTrainer on a mixture.

    Args:
        traits: how the model is trained.
        aux_loss: the sequence-wise balance loss that the model's forward adds, for the log; None if it adds none.
    """

    def __init__(self, *args: Any, traits: Traits, aux_loss: SequenceAuxLoss | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.traits, self.aux_loss = traits, aux_loss

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Return and log the mean loss in nats over every labelled token of the validation split.

        Its rows are shared among the processes; each token counts once, whatever the batches.
        """
        with self.accelerator.autocast():
            sums = held_out_loss_sum(
                cast(PreTrainedModel, self.model),
                self.traits,
                cast(MixedDataset, self.eval_dataset),
                self.args.per_device_eval_batch_size,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            )
        sums = torch.tensor(sums, dtype=torch.float64, device=self.accelerator.device)
        total, count = reduce_tensor(self.accelerator, sums, "sum")
        metrics = {f"{metric_key_prefix}_loss": (total / count).item(), f"{metric_key_prefix}_tokens": count.item()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.speed.start()
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the balance loss too."""
        if self.aux_loss is not None and "loss" in logs:
            logs = logs | {"experts/sequence_aux_loss": self.aux_loss.last}
        super().log(logs, *args, **kwargs)


def longest_document(dataset: MixedDataset, model: PreTrainedModel) -> int:
    """Return the tokens of the longest document, or a bound of them that the model has positions for."""
    if dataset.sequence_length <= (getattr(model.config, "max_position_embeddings", None) or 0):
        return dataset.sequence_length
    return max(int(dataset[row]["position_ids"].max()) for row in range(len(dataset))) + 1


@torch.no_grad()
def held_out_loss_sum(
    model: PreTrainedModel,
    traits: Traits,
    dataset: MixedDataset,
    batch_size: int,
    process: int = 0,
    num_processes: int = 1,
) -> tuple[float, int]:
    """Return the summed cross-entropy in nats over every labelled token of this process's rows, and their number.

    The model is left in the mode (training or not) it was in.
    """
    was_training = model.training
    model.eval()
    traits = replace(traits, router_weight=0.0)
    total, count = 0.0, 0
    rows = range(process, len(dataset), num_processes)
    for start in range(0, len(rows), batch_size):
        batch = collate_packed([dataset[row] for row in rows[start : start + batch_size]])
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        loss_sum, num_labels = loss_of_rows(model, traits, inputs)
        total, count = total + loss_sum.item(), count + int(num_labels.item())
    model.train(was_training)
    return total, count


def validation_loss(folder: Path, data_dir: Path, batch_size: int = 8, split: str = "validation") -> float:
    """Return the mean cross-entropy in nats per token of a model, in float32, over every labelled token of a split.

    Args:
        folder: the model's.
        data_dir: a mixture.
        batch_size: rows at once; it does not change the result beyond rounding.
        split: of the mixture.
    """
    model, dataset = load_model(folder), MixedDataset(data_dir, split)
    require_positions(model, longest_document(dataset, model))
    use_fused_attention(model)
    total, count = held_out_loss_sum(model, warn_of(model, probe(model)), dataset, batch_size)
    return total / count
