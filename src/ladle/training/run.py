"""One training from its start, or from where an earlier try stopped, to its finished artifact.

The artifact holds `checkpoints/`, the final model in `model/`, the log in `training_log.jsonl` and, once all of that is
on disk for good, `finished.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ladle.artifacts.files import fsync_tree, hash_bytes, pretty_json, write_text_durably
from ladle.models.load import require_side_files
from ladle.stage import StageResult
from ladle.training.arguments import CHECKPOINTS
from ladle.training.checkpoint import Rotation, leave_models_only
from ladle.training.config import TrainingConfig
from ladle.training.progress import SPEED_FIGURES
from ladle.training.trainer import LadleTrainer

LOG_NAME = "training_log.jsonl"
FINISHED = "finished.json"
"""Written when a training has ended and its model is saved: from then on nothing is trained again, whatever is killed
while checkpoints lose their training state and the artifact is hashed. It holds the summary, equal for equal runs."""
TIMINGS = SPEED_FIGURES | {
    "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_tokens_per_second", "total_flos",
}  # fmt: skip
"""What the log leaves out, so that equal runs give equal files."""


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to start.

    Attributes:
        trainer: trains `model`, or an adapter on it.
        model: the model itself.
        save: writes the result to `model/`.
        summarise: counters and metrics at the end, equal for equal runs.
    """

    trainer: LadleTrainer
    model: PreTrainedModel
    save: Callable[[], None]
    summarise: Callable[[], StageResult]


def run_training(config: TrainingConfig, out: Path, prepare: Callable[[Rotation], Prepared]) -> StageResult:
    """Train to the end; a training that has ended already is only tidied up.

    Args:
        config: its section.
        out: the artifact's folder.
        prepare: makes the trainer, given which checkpoints to keep.
    """
    keep = Rotation(resumable=config.trainer.get("save_total_limit"), models=config.keep_models)
    finished = out / FINISHED
    if finished.is_file():
        if os.environ.get("RANK", "0") == "0":
            leave_models_only(out / CHECKPOINTS, keep)
        return StageResult(**json.loads(finished.read_text(encoding="utf-8")))
    prepared = prepare(keep)
    trainer = prepared.trainer
    if trainer.args.should_save:
        require_side_files(prepared.model, cast(PreTrainedTokenizerBase, trainer.processing_class))
    trainer.train_or_resume()
    if trainer.args.should_save:
        prepared.model.config.use_cache = True
        prepared.save()
        with (out / LOG_NAME).open("w", encoding="utf-8") as log:
            for entry in trainer.state.log_history:
                row = {key: value for key, value in entry.items() if key not in TIMINGS}
                log.write(json.dumps(row, sort_keys=True) + "\n")
    summary = prepared.summarise()
    counters = summary.counters | {"steps": trainer.state.global_step, "processes": trainer.accelerator.num_processes}
    metrics = summary.metrics | {"wrapper": trainer.wrapper, "optimizer_digest": optimizer_digest(trainer)}
    if trainer.args.should_save:
        fsync_tree(out / "model")
        write_text_durably(finished, pretty_json({"counters": counters, "metrics": metrics}))
        trainer.finish_checkpoints()
    trainer.accelerator.end_training()
    return StageResult(counters | {"resumed_from_step": trainer.resumed_from_step}, metrics, trainer.timings())


def optimizer_digest(trainer: LadleTrainer) -> str:
    """Return the blake3 over the optimizer's tensors, in parameter order: equal runs give equal digests.

    Under ZeRO-2 over every process's share, float32 weights included; every process must call this.
    """
    optimizer, tensors = trainer.optimizer, {}
    if trainer.is_deepspeed_enabled:
        zero = trainer.deepspeed.optimizer
        optimizer = zero.optimizer
        tensors = {f"weights.{index}": share for index, share in enumerate(zero.single_partition_of_fp32_groups)}
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    for index, entry in sorted(state.items()):
        tensors |= {f"{index}.{name}": value for name, value in sorted(entry.items()) if torch.is_tensor(value)}
    parts = []
    for name, tensor in tensors.items():
        data = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        parts.append([name, hash_bytes(data)])
    digest = hash_bytes(json.dumps(parts).encode())
    return hash_bytes(json.dumps(gather_object([digest])).encode()) if trainer.is_deepspeed_enabled else digest
