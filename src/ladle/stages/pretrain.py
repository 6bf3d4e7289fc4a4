"""Continue pretraining on a mixture: `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.data.store import MixedDataset
from ladle.errors import UserError
from ladle.models.load import load_model, model_dir, save_model
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.training.checkpoint import Rotation, step_of
from ladle.training.config import PretrainConfig
from ladle.training.hf_arguments import make_arguments
from ladle.training.linear_cross_entropy import use_linear_cross_entropy
from ladle.training.outcome import LOG_NAME
from ladle.training.packed import collate_packed
from ladle.training.trainer import LadleTrainer


def run(config: PretrainConfig, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Train `model` on `mixture`, going on from the newest valid checkpoint in `out`."""
    dataset = MixedDataset(inputs["mixture"][0])
    model = load_model(inputs["model"][0], config.dtype, config.attn_implementation)
    model.config.use_cache = False
    use_linear_cross_entropy(model)
    _refuse_other_vocabulary(dataset, model.config.vocab_size)
    tokenizer = load_fast_tokenizer(model_dir(inputs["model"][0]))
    arguments = make_arguments(config, out)
    trainer = LadleTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collate_packed,
        processing_class=tokenizer,
        keep=Rotation(resumable=arguments.save_total_limit, models=config.keep_models),
        rows_are_shuffled=True,
        router_bias_update_rate=config.router_bias_update_rate,
    )
    trainer.train_or_resume()
    if arguments.should_save:
        model.config.use_cache = True
        save_model(model, tokenizer, out / "model")
        trainer.finish_checkpoints()
        trainer.write_log(out / LOG_NAME)
    summary = _summarise(trainer, dataset)
    trainer.accelerator.end_training()
    return summary


def _refuse_other_vocabulary(dataset: MixedDataset, vocab_size: int) -> None:
    if dataset.vocab_size > vocab_size:
        raise UserError(
            f"the mixture's vocabulary has {dataset.vocab_size} tokens and the model's {vocab_size}",
            "mix again with this model's tokenizer, or train the model that the mixture was made for",
        )


def _summarise(trainer: LadleTrainer, dataset: MixedDataset) -> dict[str, Any]:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rows_per_step = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size
    steps = trainer.state.global_step
    metrics = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
    return {
        "counters": {
            "steps": steps,
            "tokens": steps * rows_per_step * dataset.sequence_length,
            "processes": trainer.accelerator.num_processes,
            "resumed_from_step": step_of(trainer.resumed_from) if trainer.resumed_from else 0,
        },
        "metrics": metrics | {"wrapper": trainer.wrapper, "optimizer_digest": trainer.optimizer_digest()},
    }
