"""One training from its start, or from where an earlier try stopped, to its finished artifact.

The artifact holds `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl` and, once all of that is
on disk for good, `finished.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_pt_utils import get_parameter_names
from transformers.training_args import OptimizerNames

from ladle.artifacts.files import fsync_tree, hash_bytes, pretty_json, write_text_durably
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.load import require_side_files
from ladle.models.probe import find_routers
from ladle.stage import StageResult
from ladle.training.arguments import CHECKPOINTS, make_arguments
from ladle.training.balance import BalanceExperts
from ladle.training.checkpoint import Rotation, leave_models_only
from ladle.training.config import TrainingConfig
from ladle.training.loop import Task, Training
from ladle.training.parallel import Parallel, Sharded, World, Zero2, join_world, leave_world
from ladle.training.progress import SPEED_FIGURES

logger = get_logger(__name__)

LOG_NAME = "training_log.jsonl"
FINISHED = "finished.json"
"""Written when a training has ended and its model is saved: from then on nothing is trained again, whatever is killed
while checkpoints lose their training state and the artifact is hashed. It holds the summary, equal for equal runs."""
NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Weights that weight decay leaves alone, as in transformers.Trainer."""


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to start.

    Attributes:
        task: what it optimises.
        model: what it trains: a model, or an adapter on one.
        tokenizer: saved beside it.
        save: writes the result to `model/`; every process calls it.
        summarise: counters and metrics at the end, equal for equal runs.
    """

    task: Task
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    save: Callable[[Training], None]
    summarise: Callable[[Training], StageResult]


def run_training(
    config: TrainingConfig,
    out: Path,
    prepare: Callable[[TrainingArguments, World], Prepared],
    router_bias_update_rate: float = 0.0,
) -> StageResult:
    """Train to the end; a training that has ended already is only tidied up.

    Args:
        config: its section.
        out: the artifact's folder.
        prepare: loads the model and the data.
        router_bias_update_rate: as in `Training`.
    """
    keep = Rotation(resumable=config.trainer.get("save_total_limit"), models=config.keep_models)
    finished = out / FINISHED
    if finished.is_file():
        if os.environ.get("RANK", "0") == "0":
            leave_models_only(out / CHECKPOINTS, keep)
        return StageResult(**json.loads(finished.read_text(encoding="utf-8")))
    arguments = make_arguments(config, out)
    world = join_world(arguments.use_cpu)
    prepared = prepare(arguments, world)
    require_side_files(cast(PreTrainedModel, prepared.model), prepared.tokenizer)
    training = make_training(
        config, prepared.task, prepared.model, prepared.tokenizer, world, arguments, router_bias_update_rate
    )
    training.run()
    prepared.save(training)
    summary = prepared.summarise(training)
    counters = summary.counters | {"steps": training.state.global_step, "processes": world.size}
    parallel = training.parallel
    metrics = summary.metrics | {"wrapper": parallel.wrapper, "optimizer_digest": optimizer_digest(parallel)}
    if len(training.worlds) > 1:
        metrics["not_bit_equal"] = f"trained by {' then '.join(map(str, training.worlds))} processes"
    if world.is_main:
        with (out / LOG_NAME).open("w", encoding="utf-8") as log:
            for entry in training.state.log_history:
                row = {key: value for key, value in entry.items() if key not in SPEED_FIGURES}
                log.write(json.dumps(row, sort_keys=True) + "\n")
        fsync_tree(out / "model")
        write_text_durably(finished, pretty_json({"counters": counters, "metrics": metrics}))
        leave_models_only(training.folder, keep)
    world.wait()
    leave_world()
    seconds = training.speed.seconds_per_step()
    timings = {} if seconds is None else {"seconds_per_step": round(seconds, 6)}
    return StageResult(counters | {"resumed_from_step": training.resumed_from_step}, metrics, timings)


def make_training(
    config: TrainingConfig,
    task: Task,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    arguments: TrainingArguments,
    router_bias_update_rate: float = 0.0,
    kind: type[Training] = Training,
) -> Training:
    """Return the training of a model on a task, as its section says."""
    routers = find_routers(cast(PreTrainedModel, model))  # by a forward pass, so before the weights are shared out
    return kind(
        task,
        share_out(config, model, world, arguments),
        tokenizer,
        arguments,
        Rotation(resumable=config.trainer.get("save_total_limit"), models=config.keep_models),
        config.dtype,
        BalanceExperts(routers, router_bias_update_rate, world),
        config.max_skipped_steps,
        config.allow_other_world,
    )


def share_out(config: TrainingConfig, model: nn.Module, world: World, arguments: TrainingArguments) -> Parallel:
    """Return the model and its optimizer, on the processes as the recipe says."""
    make = partial(make_optimizer, arguments=arguments)
    if arguments.activation_checkpointing:
        kwargs = {"use_reentrant": False} | cast(dict[str, Any], arguments.activation_checkpointing_kwargs or {})
        cast(PreTrainedModel, model).activation_checkpointing_enable(kwargs)
    if arguments.torch_compile:
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.compile(backend=arguments.torch_compile_backend or "inductor", mode=arguments.torch_compile_mode)
    if config.distributed == "zero2":
        return Zero2(model, world, arguments, make)
    if config.keeps_masters or config.distributed == "fsdp":
        compute = torch.bfloat16 if config.keeps_masters else None
        shards = config.distributed == "fsdp"
        return Sharded(model, world, arguments, make, shards, compute, config.offload_to_cpu)
    if config.pure_bf16:
        logger.warning(
            "pure_bf16: weights, gradients and optimizer are all bfloat16, in which most updates of a usual learning "
            "rate round to nothing. Leave it out to train float32 weights beside them"
        )
    return Parallel(model, world, arguments, make)


def make_optimizer(model: nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Return the optimizer of `trainer.optim` for a model's trainable weights, grouped as transformers.Trainer does.

    Raises:
        UserError: its package is not installed, or it does not take groups of weights.
    """
    name = OptimizerNames(arguments.optim).value
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
    except ImportError as error:
        problem = f"trainer.optim={name} cannot run here: {str(error).splitlines()[0]}"
        raise UserError(problem, "install its package, or set optim: adamw_torch_fused") from error
    is_plain = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if not is_plain or options.keys() & {"optimizer_dict", "model"}:
        raise UserError(f"trainer.optim={name} takes its own steps", "set optim: adamw_torch_fused")
    decayed = set(get_parameter_names(model, [nn.LayerNorm], NOT_DECAYED))
    trained = [(weight_name, weight) for weight_name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in trained if name in decayed], "weight_decay": arguments.weight_decay},
        {"params": [weight for name, weight in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return kind(options.pop("params", groups), **options)


def optimizer_digest(parallel: Parallel) -> str:
    """Return the blake3 over the optimizer's tensors: equal runs give equal digests; every process must call this.

    Where processes hold shares of it, over all of them.
    """
    parts = []
    for name, tensor in parallel.state_tensors().items():
        data = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        parts.append([name, hash_bytes(data)])
    digest = hash_bytes(json.dumps(parts).encode())
    if not parallel.splits_optimizer:
        return digest
    digests = [""] * parallel.world.size
    dist.all_gather_object(digests, digest)
    return hash_bytes(json.dumps(digests).encode())
