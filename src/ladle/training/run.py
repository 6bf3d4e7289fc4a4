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
from typing import cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ladle.artifacts.files import fsync_tree, pretty_json, write_text_durably
from ladle.models.load import require_side_files
from ladle.stage import StageResult
from ladle.training.arguments import CHECKPOINTS, make_arguments
from ladle.training.checkpoint import leave_models_only
from ladle.training.config import TrainingConfig
from ladle.training.loop import Task, Training
from ladle.training.parallel import World, join_world, leave_world

LOG_NAME = "training_log.jsonl"
FINISHED = "finished.json"
"""Written when a training has ended and its model is saved: from then on nothing is trained again, whatever is killed
while checkpoints lose their training state and the artifact is hashed. It holds the summary, equal for equal runs."""


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to start.

    Attributes:
        task: what it optimises.
        model: what it trains: a model, or an adapter on one.
        tokenizer: saved beside it.
        save: writes the result to `model/`; every process calls it.
        summarise: counters and metrics at the end, equal for equal runs.
        extends: a finished training to take further.
    """

    task: Task
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    save: Callable[[Training], None]
    summarise: Callable[[Training], StageResult]
    extends: Path | None = None


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
    finished, folder = out / FINISHED, out / CHECKPOINTS
    if finished.is_file():
        if os.environ.get("RANK", "0") == "0":
            leave_models_only(folder, config)
        return StageResult(**json.loads(finished.read_text(encoding="utf-8")))
    arguments = make_arguments(config, out)
    world = join_world(arguments.use_cpu)
    prepared = prepare(arguments, world)
    task, model, tokenizer = prepared.task, prepared.model, prepared.tokenizer
    require_side_files(cast(PreTrainedModel, model), tokenizer)
    rate, extends = router_bias_update_rate, prepared.extends
    training = Training(config, task, model, tokenizer, world, arguments, rate, extends)
    training.run()
    prepared.save(training)
    summary, parallel = prepared.summarise(training), training.parallel
    counters = summary.counters | {"steps": training.state.global_step, "processes": world.size}
    metrics = summary.metrics | {"wrapper": parallel.wrapper, "optimizer_digest": parallel.digest()}
    if len(training.worlds) > 1:
        metrics["not_bit_equal"] = f"trained by {' then '.join(map(str, training.worlds))} processes"
    if world.is_main:
        with (out / LOG_NAME).open("w", encoding="utf-8") as log:
            log.writelines(json.dumps(entry, sort_keys=True) + "\n" for entry in training.state.log_history)
        fsync_tree(out / "model")
        write_text_durably(finished, pretty_json({"counters": counters, "metrics": metrics}))
        leave_models_only(folder, config)
    world.wait()
    leave_world()
    seconds = training.speed.seconds_per_step()
    timings = {} if seconds is None else {"seconds_per_step": round(seconds, 6)}
    return StageResult(counters | {"resumed_from_step": training.resumed_from_step}, metrics, timings)
