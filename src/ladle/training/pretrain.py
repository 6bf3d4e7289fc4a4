"""Continue pretraining on a mixture: `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from ladle.data.store.dataset import MixedDataset
from ladle.errors import UserError
from ladle.models.load import load_model, model_dir, own_memory, save_model
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult
from ladle.training.attention import use_fused_attention
from ladle.training.checkpoint import Rotation, leave_models_only
from ladle.training.config import PretrainConfig
from ladle.training.hf_arguments import CHECKPOINTS, make_arguments
from ladle.training.linear_cross_entropy import use_linear_cross_entropy
from ladle.training.outcome import LOG_NAME, read_finished, write_finished
from ladle.training.packed import collate_packed
from ladle.training.policy import keep_applicable_kernels
from ladle.training.pretrain_trainer import PretrainTrainer
from ladle.training.sequence_aux import SequenceAuxLoss


def run(config: PretrainConfig, inputs: Inputs, out: Path) -> StageResult:
    """Train `model` on `mixture`, going on from the newest valid checkpoint in `out`."""
    keep = Rotation(resumable=config.trainer.get("save_total_limit"), models=config.keep_models)
    if (finished := read_finished(out)) is not None:
        if os.environ.get("RANK", "0") == "0":
            leave_models_only(out / CHECKPOINTS, keep)
        return finished
    dataset = MixedDataset(inputs["mixture"][0])
    model = load_model(inputs["model"][0], config.dtype, config.attn_implementation)
    own_memory(model)
    model.config.use_cache = False
    aux_loss = SequenceAuxLoss(model, config.sequence_aux_loss) if config.sequence_aux_loss else None
    use_linear_cross_entropy(model, aux_loss)
    use_fused_attention(model)
    _refuse_other_vocabulary(dataset, model.config.vocab_size)
    tokenizer = load_fast_tokenizer(model_dir(inputs["model"][0]))
    arguments = make_arguments(config, out)
    keep_applicable_kernels(arguments, model)
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
        aux_loss=aux_loss,
    )
    trainer.train_or_resume()
    if arguments.should_save:
        model.config.use_cache = True
        save_model(model, tokenizer, out / "model")
        trainer.write_log(out / LOG_NAME)
    summary = _summarise(trainer, dataset)
    if arguments.should_save:
        write_finished(summary, out)
        trainer.finish_checkpoints()
    trainer.accelerator.end_training()
    counters = summary.counters | {"resumed_from_step": trainer.resumed_from_step}
    return StageResult(counters, summary.metrics, trainer.timings())


def _refuse_other_vocabulary(dataset: MixedDataset, vocab_size: int) -> None:
    if dataset.vocab_size > vocab_size:
        raise UserError(
            f"the mixture's vocabulary has {dataset.vocab_size} tokens and the model's {vocab_size}",
            "mix again with this model's tokenizer, or train the model that the mixture was made for",
        )


def _summarise(trainer: PretrainTrainer, dataset: MixedDataset) -> StageResult:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rows_per_step = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size
    steps = trainer.state.global_step
    metrics: dict[str, Any] = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
    held_out = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    metrics |= {"last_eval_loss": held_out[-1]} if held_out else {}
    metrics["attn_implementation"] = cast(PreTrainedModel, trainer.model).config._attn_implementation
    counters = {
        "steps": steps,
        "tokens": steps * rows_per_step * dataset.sequence_length,
        "processes": trainer.accelerator.num_processes,
    }
    return StageResult(counters, metrics | {"wrapper": trainer.wrapper, "optimizer_digest": trainer.optimizer_digest()})
