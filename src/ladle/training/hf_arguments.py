"""From a recipe's `trainer:` block to transformers.TrainingArguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ladle.errors import UserError
from ladle.training.config import TrainingConfig
from ladle.training.processes import require_processes
from ladle.training.zero2 import zero2_arguments

CHECKPOINTS = "checkpoints"
DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "remove_unused_columns": False,
}
"""Where Ladle's defaults differ: a non-finite loss is not filtered out of the log, progress is Ladle's own."""


def make_arguments(config: TrainingConfig, out: Path) -> TrainingArguments:
    """Return the TrainingArguments of a stage; checkpoints go to `out/checkpoints`.

    Raises:
        UserError: transformers refuses a value, or the number of processes is not the recipe's.
    """
    require_processes(config.processes)
    values: dict[str, Any] = DEFAULTS | config.trainer.values() | {"output_dir": str(out / CHECKPOINTS)}
    if not torch.cuda.is_available():
        gloo: dict[str, Any] = {"ddp_backend": "gloo"} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
        values = {"dataloader_pin_memory": False, "use_cpu": True} | gloo | values
    if config.distributed == "zero2":
        values |= zero2_arguments(config.dtype)
    try:
        return TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(
            f"trainer arguments are not valid: {str(error).splitlines()[0]}", "mend the value in `trainer:`"
        ) from error
