"""From a recipe's `trainer:` block to transformers.TrainingArguments, refusing what cannot work."""

from __future__ import annotations

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

from ladle.errors import UserError
from ladle.log import get_logger
from ladle.training.config import TrainingConfig
from ladle.training.processes import require_processes, zero2_arguments

logger = get_logger(__name__)

CHECKPOINTS = "checkpoints"
LADLE_DEFAULTS: dict[str, Any] = {
    "report_to": "tensorboard",
    "disable_tqdm": True,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "remove_unused_columns": False,
    "ddp_find_unused_parameters": True,
}
"""Where they differ from transformers': a non-finite loss is not filtered out of the log, progress is Ladle's own. DDP
that looks for unused parameters never rebuilds its buckets after the first step; otherwise the sums of three and more
processes' gradients would round differently in the first step of a resumed run."""


def make_arguments(config: TrainingConfig, out: Path) -> TrainingArguments:
    """Return the TrainingArguments of a stage; checkpoints go to `out/checkpoints`.

    Raises:
        UserError: transformers refuses a value, or the number of processes is not the recipe's.
    """
    require_processes(config.processes)
    values: dict[str, Any] = config.trainer.values() | {"output_dir": str(out / CHECKPOINTS)}
    if not torch.cuda.is_available():
        gloo: dict[str, Any] = {"ddp_backend": "gloo"} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
        values = {"dataloader_pin_memory": False, "use_cpu": True} | gloo | values
    if config.distributed == "zero2":
        values |= zero2_arguments(config.dtype)
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
    "fsdp": ("is not supported", "leave it out; distributed: zero2 splits gradients and optimizer"),
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
}
"""Arguments that Ladle does not let be set: why, and what to do."""


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
    for name, (why, fix) in REFUSED.items():
        if (value := config.trainer.get(name)) and value != "random":  # the default of train_sampling_strategy
            raise UserError(f"trainer.{name} {why}", fix)
    if values.get("fp16") and values.get("use_cpu"):
        problem = "trainer.fp16 needs a GPU: a CPU has no mixed precision in float16"
        raise UserError(problem, "set bf16: true, or leave both out")
    if config.nan_policy == "skip" and config.distributed == "zero2":
        problem = "nan_policy: skip does not work with distributed: zero2, whose engine takes its own steps"
        raise UserError(problem, "set nan_policy: stop, or distributed: ddp")
    if config.dtype == "float16" and config.distributed == "ddp" and getattr(config, "peft", None) is None:
        problem = "dtype: float16 cannot be trained: AdamW's epsilon and most updates round to nothing in it"
        raise UserError(problem, "set dtype: float32 with trainer.fp16=true (mixed precision), or dtype: bfloat16")


def drop_liger_where_it_cannot_run(arguments: TrainingArguments, model: PreTrainedModel) -> None:
    """Switch `use_liger_kernel` off, with a warning, where Liger is not installed or does not know the model."""
    if not arguments.use_liger_kernel:
        return
    known, why = {}, "liger-kernel is not installed"
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # type: ignore[import-not-found]

        known, why = MODEL_TYPE_TO_APPLY_LIGER_FN, f"Liger has no kernels for {model.config.model_type}"
    if model.config.model_type not in known:
        logger.warning("use_liger_kernel is left out: %s", why)
        arguments.use_liger_kernel = False
