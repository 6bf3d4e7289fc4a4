"""Align a policy by KTO: `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers import PreTrainedModel, TrainingArguments

from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.chat_template import ensure_chat_template
from ladle.models.load import model_dir, own_memory
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult
from ladle.training.checkpoint import Rotation, leave_models_only
from ladle.training.hf_arguments import CHECKPOINTS, make_arguments
from ladle.training.kto.config import KtoConfig, KtoReferenceConfig
from ladle.training.kto.data import KtoExamples
from ladle.training.kto.forward import use_kto_forward
from ladle.training.kto.labels import choose_weights
from ladle.training.kto.plan import make_plan
from ladle.training.kto.reference import KtoReference
from ladle.training.kto.trainer import KtoData, KtoOptions, KtoTrainer
from ladle.training.outcome import LOG_NAME, read_finished, write_finished
from ladle.training.policy import add_adapter, keep_applicable_kernels, load_policy_base, pad_id_of, save_policy

logger = get_logger(__name__)
SHOWN_METRICS = ("loss", "z0", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "nll/chosen")


def run(config: KtoConfig, inputs: Inputs, out: Path) -> StageResult:
    """Train `model` on the examples and reference log-probabilities in `reference`."""
    keep = Rotation(resumable=config.trainer.get("save_total_limit"), models=config.keep_models)
    if (finished := read_finished(out)) is not None:
        if os.environ.get("RANK", "0") == "0":
            leave_models_only(out / CHECKPOINTS, keep)
        return finished
    start, reference = inputs["model"][0], inputs["reference"][0]
    tokenizer = load_fast_tokenizer(model_dir(start))
    if json.loads((reference / "data.json").read_text(encoding="utf-8"))["conversational"]:
        ensure_chat_template(tokenizer)
    arguments = make_arguments(config, out)
    model = load_policy_base(start, config)
    if config.quantization is None:
        own_memory(model)
    keep_applicable_kernels(arguments, model)
    use_kto_forward(model)
    model.config.use_cache = False
    policy = model if config.peft is None else add_adapter(model, config.peft, arguments.seed)
    trainer = _make_trainer(config, arguments, policy, reference, pad_id_of(tokenizer), keep)
    trainer.processing_class = tokenizer
    trainer.train_or_resume()
    if arguments.should_save:
        model.config.use_cache = True
        save_policy(policy, tokenizer, start, config, out)
        trainer.write_log(out / LOG_NAME)
    summary = _summarise(trainer)
    if arguments.should_save:
        write_finished(summary, out)
        trainer.finish_checkpoints()
    trainer.accelerator.end_training()
    counters = summary.counters | {"resumed_from_step": trainer.resumed_from_step}
    return StageResult(counters, summary.metrics, trainer.timings())


def _make_trainer(
    config: KtoConfig,
    arguments: TrainingArguments,
    policy: PreTrainedModel,
    reference: Path,
    pad_id: int,
    keep: Rotation,
) -> KtoTrainer:
    passes = KtoReferenceConfig.of(config, config.seed)
    _require_enough_kl_rows(config, arguments)
    data = _read(passes, reference, config, is_training=True)
    options = KtoOptions(
        choose_weights(config, data.examples.is_desirable),
        config.kl_scope if config.estimates_kl else "none",
        config.max_tokens_per_microbatch,
    )
    return KtoTrainer(
        model=policy,
        args=arguments,
        data=data,
        eval_data=_read(passes, reference, config, is_training=False) if passes.eval_split else None,
        options=options,
        pad_id=pad_id,
        keep=keep,
        rows_are_shuffled=False,
        router_bias_update_rate=0.0,
        max_skipped_steps=config.max_skipped_steps,
    )


def _require_enough_kl_rows(config: KtoConfig, arguments: TrainingArguments) -> None:
    """Refuse a share of examples so small that some z0 would rest on none."""
    rows = arguments.per_device_train_batch_size * arguments.world_size
    rows *= arguments.gradient_accumulation_steps if config.kl_scope == "step" else 1
    if config.estimates_kl and config.kl_fraction * rows < 1:
        raise UserError(
            f"kto.kl_fraction={config.kl_fraction:g} of the {rows} examples that share a z0 is less than one",
            f"raise it to at least {1 / rows:.3g}, or set kto.kl_scope=none",
        )


def _read(passes: KtoReferenceConfig, reference: Path, config: KtoConfig, is_training: bool) -> KtoData:
    folder = reference / ("train" if is_training else config.eval_split)
    examples = KtoExamples.load(folder, config.max_length)
    return KtoData(examples, make_plan(passes, examples.prompt_of, is_training), KtoReference.load(folder))


def _summarise(trainer: KtoTrainer) -> StageResult:
    last = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    labels = trainer.data.examples.is_desirable
    counters = {
        "steps": trainer.state.global_step,
        "desirable": int(labels.sum()),
        "undesirable": int((~labels).sum()),
        "processes": trainer.accelerator.num_processes,
    }
    metrics = {name: last[name] for name in SHOWN_METRICS if name in last}
    digest = {"wrapper": trainer.wrapper, "optimizer_digest": trainer.optimizer_digest()}
    return StageResult(counters, metrics | digest)
