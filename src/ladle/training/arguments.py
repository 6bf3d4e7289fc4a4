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
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.integrations.liger import apply_liger_kernel

from ladle.errors import UserError
from ladle.log import get_logger
from ladle.training.config import DEFAULT_TRACKER, TrainingConfig
from ladle.training.parallel import require_processes

logger = get_logger(__name__)

CHECKPOINTS = "checkpoints"
LADLE_DEFAULTS: dict[str, Any] = {
    "report_to": DEFAULT_TRACKER,
    "disable_tqdm": True,
    "logging_steps": 10,
    "ddp_find_unused_parameters": True,
    "tf32": False,
}
"""Where they differ from transformers': progress is Ladle's own. DDP that looks for unused parameters never rebuilds
its buckets after the first step; otherwise the sums of three and more processes' gradients would round differently in
the first step of a resumed run. TF32 is off where nobody asks for it; transformers would have torch_compile do so."""


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
    values["report_to"] = values["report_to"] or "none"  # unset would be a tracker without a name
    _refuse_what_cannot_work(config, values)
    try:
        with warnings.catch_warnings():  # of names that transformers 6 will drop, and Ladle requires one below 6
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            arguments = TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise _explain(error) from error
    try:
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()  # says whether its package is installed
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"trainer.report_to: {error}", "install its package, or leave report_to out") from error
    return arguments


def _explain(error: Exception) -> UserError:
    """Say what transformers refused; of a list of all values that it knows, only the nearest."""
    problem, _, known = str(error).splitlines()[0].partition(", please select one of ")
    close = difflib.get_close_matches(problem.split()[0], re.findall(r"'([^']+)'", known), n=1, cutoff=0.5)
    return UserError(f"trainer: {problem}", f"did you mean {close[0]!r}?" if close else f"correct it {known}".rstrip())


OF_SHARDS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers that take FSDP2's weights."""


def _refuse_what_cannot_work(config: TrainingConfig, values: dict[str, Any]) -> None:
    if values.get("fp16") and values.get("use_cpu"):
        problem = "trainer.fp16 needs a GPU: a CPU has no mixed precision in float16"
        raise UserError(problem, "set bf16: true, or leave both out")
    if values.get("torch_compile_backend") == "eager" and config.checkpoints_activations:
        problem = "trainer.torch_compile_backend=eager cannot compute activations again where experts are counted"
        raise UserError(problem, "set it to aot_eager or inductor, or leave activation_checkpointing out")
    if config.nan_policy == "skip" and config.distributed == "zero2":
        problem = "nan_policy: skip does not work with distributed: zero2, whose engine keeps the gradients"
        raise UserError(problem, "set nan_policy: stop, or distributed: fsdp")
    if (config.distributed == "fsdp" or config.keeps_masters) and config.trainer.get("optim") not in OF_SHARDS:
        needs = "shards" if config.distributed == "fsdp" else "the float32 weights that stand behind bfloat16"
        problem = f"trainer.optim={config.trainer.get('optim')} does not work on {needs}"
        fix = f"set optim to one of {', '.join(OF_SHARDS)}, or train in float32 with distributed: ddp"
        raise UserError(problem, fix + " (with dtype: bfloat16, pure_bf16: true loses most updates to rounding)")
    if config.distributed == "fsdp" and values.get("fp16"):
        raise UserError("trainer.fp16 does not work with distributed: fsdp", "set bf16: true")
    if config.distributed == "fsdp" and getattr(config, "quantization", None) is not None:
        raise UserError("quantized weights cannot be split by distributed: fsdp", "set distributed: ddp")
    if config.dtype == "float16" and config.distributed == "ddp" and config.peft is None:
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
