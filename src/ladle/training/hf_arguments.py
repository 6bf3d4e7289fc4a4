"""From a recipe's `trainer:` block to transformers.TrainingArguments."""

from __future__ import annotations

import importlib.util
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
    "report_to": "tensorboard",
    "disable_tqdm": True,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "remove_unused_columns": False,
    "ddp_find_unused_parameters": True,
}
"""Where Ladle's defaults differ: a non-finite loss is not filtered out of the log, progress is Ladle's own. DDP that
looks for unused parameters never builds its buckets anew after the first step; otherwise the sums of three and more
processes' gradients would round differently in the first step of a resumed run."""


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
    _refuse_what_cannot_work(config, values)
    try:
        return TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(
            f"trainer arguments are not valid: {str(error).splitlines()[0]}", "mend the value in `trainer:`"
        ) from error


PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
}
"""The package that each tracker named in `report_to` needs."""


def _refuse_what_cannot_work(config: TrainingConfig, values: dict[str, Any]) -> None:
    report_to = values["report_to"]
    for tracker in [report_to] if isinstance(report_to, str) else report_to:
        package = PACKAGES.get(tracker)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"report_to: {tracker} needs the package {package}, which is absent", f"pip install {package}"
            )
    if values.get("load_best_model_at_end"):
        raise UserError(
            "trainer.load_best_model_at_end would load weights with routed experts left out",
            "leave it out; `soup: {select: …}` chooses among checkpoints by their held-out loss",
        )
    if config.nan_policy == "skip" and config.distributed == "zero2":
        raise UserError(
            "nan_policy: skip does not work with distributed: zero2, whose engine takes its own steps",
            "set nan_policy: stop, or distributed: ddp",
        )
