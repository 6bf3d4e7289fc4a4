"""Align a policy by KTO: `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.data.read_rows import read_rows
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.load import load_model, model_dir, save_model
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.training.checkpoint import Rotation
from ladle.training.config import KtoConfig
from ladle.training.hf_arguments import make_arguments
from ladle.training.kto_data import KtoExample, make_examples
from ladle.training.kto_loss import KtoWeights
from ladle.training.kto_trainer import KtoTrainer, add_reference_logps
from ladle.training.outcome import LOG_NAME

logger = get_logger(__name__)


def run(config: KtoConfig, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Train `model` on `preference`."""
    model = load_model(inputs["model"][0], config.dtype, config.attn_implementation)
    tokenizer = load_fast_tokenizer(model_dir(inputs["model"][0]))
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(pad_id, int)
    arguments = make_arguments(config, out)
    rows = list(read_rows([inputs["preference"][0] / "preference"]))
    examples, counters = make_examples(rows, tokenizer, config.max_length, arguments.seed)
    weights = _weights(config, examples)
    trainer = KtoTrainer(
        model=model,
        args=arguments,
        train_dataset=add_reference_logps(model, examples, pad_id, arguments.per_device_train_batch_size),
        processing_class=tokenizer,
        weights=weights,
        pad_id=pad_id,
        keep=Rotation(resumable=arguments.save_total_limit, models=config.keep_models),
        rows_are_shuffled=False,
        router_bias_update_rate=0.0,
    )
    trainer.train_or_resume()
    if arguments.should_save:
        save_model(model, tokenizer, out / "model")
        trainer.finish_checkpoints()
        trainer.write_log(out / LOG_NAME)
    last = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    metrics: dict[str, Any] = {
        name: last[name] for name in ("loss", "z0", "rewards/chosen", "rewards/rejected") if name in last
    }
    metrics["optimizer_digest"] = trainer.optimizer_digest()
    trainer.accelerator.end_training()
    return {"counters": counters | {"steps": trainer.state.global_step}, "metrics": metrics}


def _weights(config: KtoConfig, examples: list[KtoExample]) -> KtoWeights:
    num_desirable = sum(example.is_desirable for example in examples)
    num_undesirable = len(examples) - num_desirable
    if 0 in (num_desirable, num_undesirable):
        _refuse_single_label(config, num_desirable > 0)
    if config.desirable_weight == "auto":
        desirable = (
            config.undesirable_weight * num_undesirable / num_desirable if num_desirable and num_undesirable else 1.0
        )
    else:
        desirable = config.desirable_weight
    logger.info(
        "KTO: %d desirable (weight %.3g), %d undesirable (weight %.3g)",
        num_desirable,
        desirable,
        num_undesirable,
        config.undesirable_weight,
    )
    return KtoWeights(config.beta, desirable, config.undesirable_weight)


def _refuse_single_label(config: KtoConfig, label: bool) -> None:
    problem = f"every example is labelled {label}"
    if not config.allow_single_label:
        raise UserError(
            f"{problem}: z0 would grow with the reward and the policy drift as unbounded SFT",
            "add examples of the other label (a `rollout:` section makes them), or set kto.allow_single_label=true",
        )
    logger.warning("%s, and kto.allow_single_label=true: z0 will cancel the reward; watch the log's z0", problem)
