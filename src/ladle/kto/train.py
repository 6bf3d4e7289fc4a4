"""Align a policy by KTO, on the examples and reference log-probabilities that `ladle.kto.reference` left."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from transformers import TrainingArguments

from ladle.errors import UserError
from ladle.kto.config import KtoConfig, KtoReferenceConfig
from ladle.kto.data import KtoExamples, refuse_single_label
from ladle.kto.loss import KtoWeights
from ladle.kto.pairs import make_plan
from ladle.kto.reference import TRAIN, KtoReference, load_policy, share_prompts
from ladle.kto.task import KtoData, KtoOptions, KtoTask
from ladle.log import get_logger
from ladle.models.chat import ensure_chat_template
from ladle.models.load import model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult
from ladle.training.adapter import add_adapter, save_trained
from ladle.training.arguments import use_liger_where_it_can_run
from ladle.training.loop import Training
from ladle.training.parallel import World
from ladle.training.run import Prepared, run_training

logger = get_logger(__name__)

SHOWN_METRICS = ("loss", "z0", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "nll/chosen")
PAPER_RANGE = (1.0, 4 / 3)
"""λ_D n_D / (λ_U n_U) that the paper advises (arXiv 2402.01306, eq. 8 and below)."""


def run(config: KtoConfig, inputs: Inputs, out: Path) -> StageResult:
    """Train `model` on the examples and reference log-probabilities in `reference`."""
    return run_training(config, out, partial(_prepare, config, inputs, out))


def _prepare(config: KtoConfig, inputs: Inputs, out: Path, arguments: TrainingArguments, world: World) -> Prepared:
    start, reference = inputs["model"][0], inputs["reference"][0]
    tokenizer = load_fast_tokenizer(model_dir(start))
    if json.loads((reference / "data.json").read_text(encoding="utf-8"))["conversational"]:
        ensure_chat_template(tokenizer)
    checkpointing = bool(arguments.gradient_checkpointing)
    model, packed, choices = load_policy(start, config, config.weights_dtype, world.device, 0, checkpointing)
    use_liger_where_it_can_run(arguments, model)
    model.config.use_cache = False
    policy = add_adapter(model, config, arguments.seed)
    _require_enough_kl_rows(config, world.size)
    if config.max_steps is not None and world.size != config.processes:
        problem = f"kto.trainer.max_steps counts steps of {config.processes} processes, and {world.size} are running"
        raise UserError(problem, "set trainer.num_train_epochs in its place, or run on one machine")
    passes = KtoReferenceConfig.of(config, config.seed)

    def read(split: str, is_training: bool) -> KtoData:
        examples = share_prompts(KtoExamples.load(reference / split, config.max_length), model, packed)
        plan = make_plan(passes, examples.prompt_of, is_training)
        return KtoData(examples, plan, KtoReference.load(reference / split))

    data = read(TRAIN, is_training=True)
    labels = data.examples.is_desirable
    options = KtoOptions(
        choose_weights(config, labels),
        config.kl_scope if config.estimates_kl else "none",
        config.max_tokens_per_microbatch,
        packed,
        config.nll_weight,
    )
    eval_data = read(config.eval_split, is_training=False) if passes.eval_split else None
    task = KtoTask(data, eval_data, options, cast(int, tokenizer.pad_token_id or 0))

    def save(training: Training) -> None:
        model.config.use_cache = True
        save_trained(training, start, config, out)

    def summarise(training: Training) -> StageResult:
        last = next((entry for entry in reversed(training.state.log_history) if "loss" in entry), {})
        counters = {"desirable": int(labels.sum()), "undesirable": int((~labels).sum())}
        metrics = {name: last[name] for name in SHOWN_METRICS if name in last} | choices
        weights = (options.weights.desirable, options.weights.undesirable)
        positive, negative = (weight * count for weight, count in zip(weights, counters.values(), strict=True))
        return StageResult(counters, metrics | ({"negatives_to_positives": negative / positive} if positive else {}))

    return Prepared(task, policy, tokenizer, save, summarise)


def _require_enough_kl_rows(config: KtoConfig, num_processes: int) -> None:
    """Refuse a share of examples so small that some z0 would rest on none."""
    rows = config.batch_size * num_processes
    rows *= int(config.trainer.get("gradient_accumulation_steps")) if config.kl_scope == "step" else 1
    if config.estimates_kl and config.kl_fraction * rows < 1:
        problem = f"kto.kl_fraction={config.kl_fraction:g} of the {rows} examples that share a z0 is less than one"
        raise UserError(problem, f"raise it to at least {1 / rows:.3g}, or set kto.kl_scope=none")


def choose_weights(config: KtoConfig, is_desirable: np.ndarray) -> KtoWeights:
    """Return the loss's weights, and log how they compare to the paper's advice.

    Raises:
        UserError: one label is missing, and `allow_single_label` is not set.
    """
    num_desirable = int(is_desirable.sum())
    num_undesirable = len(is_desirable) - num_desirable
    if 0 in (num_desirable, num_undesirable):
        refuse_single_label(is_desirable, config.allow_single_label)
        logger.warning("training on one label: z0 will cancel the reward; watch the log's z0")
        desirable = 1.0 if config.desirable_weight == "auto" else config.desirable_weight
        return KtoWeights(config.beta, desirable, config.undesirable_weight)
    per_unit = num_desirable / (config.undesirable_weight * num_undesirable)
    desirable = 1 / per_unit if config.desirable_weight == "auto" else config.desirable_weight
    ratio = desirable * per_unit
    logger.info(
        "KTO: %d desirable (weight %.3g), %d undesirable (weight %.3g): λ_D n_D / λ_U n_U = %.3g",
        num_desirable, desirable, num_undesirable, config.undesirable_weight, ratio,
    )  # fmt: skip
    low, high = PAPER_RANGE
    if not low - 1e-9 <= ratio <= high + 1e-9:
        logger.warning(
            "λ_D n_D / λ_U n_U is %.3g, outside the paper's [1, 4/3]: a desirable_weight in [%.3g, %.3g] is inside",
            ratio, low / per_unit, high / per_unit,
        )  # fmt: skip
    return KtoWeights(config.beta, desirable, config.undesirable_weight)
