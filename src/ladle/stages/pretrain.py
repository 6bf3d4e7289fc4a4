"""Continue pretraining a model on a mixture: `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ladle.data.store import MixedDataset
from ladle.errors import UserError
from ladle.models.load import complete_config, load_model, model_dir, save_model
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.training.config import PretrainConfig
from ladle.training.packed import collate_packed
from ladle.training.trainer import CHECKPOINTS, LOG_NAME, LadleTrainer, make_arguments


def run(config: PretrainConfig, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Train `model` on `mixture`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    dataset = MixedDataset(inputs["mixture"][0])
    model = load_model(inputs["model"][0], config.dtype, config.attn_implementation)
    model.config.use_cache = False
    _refuse_other_vocabulary(dataset, model.config.vocab_size)
    tokenizer = load_fast_tokenizer(model_dir(inputs["model"][0]))
    trainer = LadleTrainer(
        model=model,
        args=make_arguments(config.trainer, out, remove_unused_columns=False),
        train_dataset=dataset,  # type: ignore[arg-type] - map-style: it has __len__ and __getitem__
        data_collator=collate_packed,
        processing_class=tokenizer,
    )
    trainer.train()
    model.config.use_cache = True
    save_model(model, tokenizer, out / "model")
    for checkpoint in (out / CHECKPOINTS).glob("checkpoint-*"):
        complete_config(checkpoint)
    trainer.write_log(out / LOG_NAME)
    return _summarise(trainer, dataset)


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
    return {
        "counters": {"steps": steps, "tokens": steps * rows_per_step * dataset.sequence_length},
        "metrics": {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {},
    }
