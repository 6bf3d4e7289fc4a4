"""From a recipe's `trainer:` block to transformers.TrainingArguments, refusing what cannot work."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.integrations.liger import apply_liger_kernel

from ladle.errors import UserError
from ladle.log import get_logger
from ladle.training.config import EXECUTION_ARGUMENTS, TrainingConfig
from ladle.training.parallel import require_processes

logger = get_logger(__name__)

CHECKPOINTS = "checkpoints"
LADLE_DEFAULTS: dict[str, Any] = {
    "report_to": "tensorboard",
    "disable_tqdm": True,
    "logging_steps": 10,
    "ddp_find_unused_parameters": True,
}
"""Where they differ from transformers': progress is Ladle's own. DDP that looks for unused parameters never rebuilds
its buckets after the first step; otherwise the sums of three and more processes' gradients would round differently in
the first step of a resumed run."""


def make_arguments(config: TrainingConfig, out: Path) -> TrainingArguments:
    """Return the TrainingArguments of a stage; checkpoints go to `out/checkpoints`.

    Raises:
        UserError: transformers or Ladle refuses a value, or the number of processes is not the recipe's.
    """
    require_processes(config.processes)
    values: dict[str, Any] = config.trainer.values() | {"output_dir": str(out / CHECKPOINTS)}
    if not torch.cuda.is_available():
        values = {"dataloader_pin_memory": False, "use_cpu": True} | values
    if config.distributed == "zero2":
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            problem = "distributed: zero2 splits the optimizer among processes, and there is one"
            raise UserError(problem, "set processes to the number of GPUs, or distributed: ddp")
        if importlib.util.find_spec("deepspeed") is None:
            fix = "pip install --no-build-isolation 'ladle[deepspeed]', or set distributed: ddp"
            raise UserError("distributed: zero2 needs DeepSpeed, which is not installed", fix)
    return check_arguments(config, values)


def check_arguments(config: TrainingConfig, values: dict[str, Any]) -> TrainingArguments:
    """Return the TrainingArguments of these values, or refuse them.

    Args:
        config: the section they come from.
        values: what transformers is given, Ladle's own among them.

    Raises:
        UserError: transformers or Ladle refuses a value.
    """
    values = LADLE_DEFAULTS | values
    _refuse_what_cannot_work(config, values)
    try:
        with warnings.catch_warnings():  # of names that transformers 6 will drop, and Ladle requires one below 6
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            arguments = TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise _explain(error) from error
    return arguments


def _explain(error: Exception) -> UserError:
    """Say which value transformers refused; of a list of all it knows, only the nearest."""
    text = str(error).splitlines()[0]
    if found := re.match(r"(\S+) is not a valid (\w+), please select one of (.*)", text):
        value, kind, known = found.groups()
        close = difflib.get_close_matches(value, re.findall(r"'([^']+)'", known), n=1, cutoff=0.5)
        fix = f"did you mean {close[0]!r}?" if close else f"name one of {known}"
        return UserError(f"trainer: {value!r} is not a valid {kind}", fix)
    return UserError(f"trainer arguments are not valid: {text}", "correct the value in `trainer:`")


PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit"}
"""The packages of trackers that are named otherwise."""
REFUSED: dict[str, tuple[str, str]] = {
    "load_best_model_at_end": (
        "would load weights with routed experts left out",
        "leave it out; `soup: {select: …}` chooses among checkpoints by their held-out loss",
    ),
    "deepspeed": ("is not read: Ladle makes its own", "leave it out, and set distributed: zero2"),
    "fsdp": ("is not read: Ladle shards by itself", "leave it out, and set distributed: fsdp"),
    "label_smoothing_factor": ("is not part of the one-pass loss", "leave it out"),
    "auto_find_batch_size": (
        "would make the batch size depend on how much memory is free",
        "leave it out; `ladle doctor` says how much memory a batch size takes",
    ),
    "ignore_data_skip": ("would train on other rows after a restart", "leave it out"),
    "train_sampling_strategy": (
        "would be ignored: rows are taken in an order that a restart finds by arithmetic",
        "leave it out",
    ),
    "enable_jit_checkpoint": ("is not needed: SIGTERM and SIGUSR1 save at the next step", "leave it out"),
    "push_to_hub": ("would push checkpoints before they are verified", "leave it out, and use `ladle push` at the end"),
    "average_tokens_across_devices": (
        "cannot be false: a step's loss is the mean over its tokens, however they are shared out",
        "leave it out",
    ),
    "lr_scheduler_type": ("does not follow from the step", "name cosine, linear, constant or another that does"),
}
"""Arguments that Ladle does not let be set: why, and what to do."""
HONOURED = frozenset((
    "output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps",
    "max_grad_norm", "bf16", "fp16", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "logging_strategy", "logging_steps",
    "logging_first_step", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps",
    "save_total_limit", "save_only_model", "full_determinism", "seed", "data_seed", "dataloader_drop_last",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "do_train",
    "do_eval",
)) | EXECUTION_ARGUMENTS  # fmt: skip
"""Arguments that the training loop heeds, or that change nothing; any other one is refused unless it is at its
default."""
OF_SHARDS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers that take FSDP2's weights."""
OFF_SCHEDULE = ("reduce_lr_on_plateau", "greedy")


def _refuse_what_cannot_work(config: TrainingConfig, values: dict[str, Any]) -> None:
    report_to = values["report_to"] or []
    for tracker in [report_to] if isinstance(report_to, str) else report_to:
        if tracker in ("all", "none"):
            continue
        if tracker not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise UserError(f"report_to: {tracker} is not a tracker", f"name one of {known}, or none")
        package = PACKAGES.get(tracker, tracker)
        if importlib.util.find_spec(package) is None:
            problem = f"report_to: {tracker} needs the package {package}, which is not installed"
            raise UserError(problem, f"pip install {package}")
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    for name, value in config.trainer.values().items():
        is_heeded = value not in OFF_SCHEDULE if name == "lr_scheduler_type" else name in HONOURED - REFUSED.keys()
        if not is_heeded and value not in (None, defaults[name]):
            why, fix = REFUSED.get(name, ("is not something that Ladle's training loop does", "leave it out"))
            raise UserError(f"trainer.{name}={value} {why}", fix)
    if values.get("fp16") and values.get("use_cpu"):
        problem = "trainer.fp16 needs a GPU: a CPU has no mixed precision in float16"
        raise UserError(problem, "set bf16: true, or leave both out")
    if config.nan_policy == "skip" and config.distributed == "zero2":
        problem = "nan_policy: skip does not work with distributed: zero2, whose engine keeps the gradients"
        raise UserError(problem, "set nan_policy: stop, or distributed: fsdp")
    is_sharded = config.distributed == "fsdp" or config.keeps_masters
    if is_sharded and (optim := str(config.trainer.get("optim"))) not in OF_SHARDS:
        problem = f"trainer.optim={optim} does not work on the float32 weights behind bfloat16, nor on shards"
        raise UserError(problem, "set optim: adamw_torch_fused, or pure_bf16: true where you accept what it loses")
    if config.distributed == "fsdp" and values.get("fp16"):
        raise UserError("trainer.fp16 does not work with distributed: fsdp", "set bf16: true")
    if config.distributed == "fsdp" and getattr(config, "quantization", None) is not None:
        raise UserError("quantized weights cannot be split by distributed: fsdp", "set distributed: ddp")
    if config.dtype == "float16" and config.distributed == "ddp" and getattr(config, "peft", None) is None:
        problem = "dtype: float16 cannot be trained: AdamW's epsilon and most updates round to nothing in it"
        raise UserError(problem, "set dtype: float32 with trainer.fp16=true (mixed precision), or dtype: bfloat16")


def use_liger_where_it_can_run(arguments: TrainingArguments, model: PreTrainedModel) -> None:
    """Give the model Liger's kernels where `use_liger_kernel` is set; warn where Liger cannot run."""
    if not arguments.use_liger_kernel:
        return
    known, why = {}, "liger-kernel is not installed"
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # type: ignore[import-not-found]

        known, why = MODEL_TYPE_TO_APPLY_LIGER_FN, f"Liger has no kernels for {model.config.model_type}"
    if model.config.model_type in known:
        apply_liger_kernel(model, arguments.liger_kernel_config)
    else:
        logger.warning("use_liger_kernel is left out: %s", why)
