"""Time from the start of training to its first optimizer step, resumed at 10 %, 50 % and 90 % of an epoch.

    python benchmarks/bench_resume.py [--rows 7500000] [--runs 3]

The epoch has as many rows as OpenSeek's (7.5 million), each made from its number, and the model is tiny, so that what
is timed is finding the place. A checkpoint is saved at step 1 and its step then set to where the resumption is to be;
Ladle's is sealed again. Both Trainers read the same rows; the plain one shuffles, as it does by default.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)

import results
from ladle.training.arguments import make_arguments
from ladle.training.checkpoint import MANIFEST, STAGING, seal
from ladle.training.config import PretrainConfig
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.loop import Training
from ladle.training.packed_rows import collate_packed
from ladle.training.parallel import join_world
from ladle.training.pretrain import PretrainTask

SHARES = (0.1, 0.5, 0.9)
LENGTH, VOCAB_SIZE, BATCH = 16, 256, 4
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}


class NumberedRows(Dataset[dict[str, np.ndarray]]):
    """Rows whose tokens follow from their number."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        tokens = (row + np.arange(LENGTH)) % VOCAB_SIZE
        return {"input_ids": tokens, "position_ids": np.arange(LENGTH), "labels": tokens}


class StopAfterOneStep(TrainerCallback):
    """Notes when the first step ended, and ends training there."""

    def __init__(self) -> None:
        self.ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time and stop."""
        self.ended = time.perf_counter()
        control.should_training_stop = True


class _OneStep(Training):
    """Notes when its first step ended, and ends there."""

    ended = 0.0

    def _log_evaluate_save(self, stops: bool) -> None:
        self.ended = time.perf_counter()
        super()._log_evaluate_save(stops)
        raise StopIteration


def make_trainer(way: str, num_rows: int, folder: Path) -> Any:
    """Return Ladle's training or the plain Trainer, for one epoch of the rows."""
    values = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
    }
    pretrain = PretrainConfig.model_validate({"trainer": values})
    arguments = make_arguments(pretrain, folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", vocab_size=VOCAB_SIZE, num_key_value_heads=2, **SHAPE)
    model, rows = AutoModelForCausalLM.from_config(config), NumberedRows(num_rows)
    if way == "trainer":
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate_packed)
        trainer.remove_callback(PrinterCallback)
        return trainer
    use_linear_cross_entropy(model)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0})), pad_token="<pad>")
    return _OneStep(pretrain, PretrainTask(rows), model, tokenizer, join_world(), arguments)


def start(trainer: Any, checkpoint: Path | None) -> float:
    """Train until the first step has ended, and return when that was."""
    if isinstance(trainer, _OneStep):
        with contextlib.suppress(StopIteration):
            trainer.run()
        return trainer.ended
    stop = StopAfterOneStep()
    trainer.add_callback(stop)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return stop.ended


def save_first_checkpoint(way: str, num_rows: int, folder: Path) -> Path:
    """Take one step and return the checkpoint it left."""
    start(make_trainer(way, num_rows, folder), None)
    return folder / "checkpoints" / "checkpoint-1"


def move(way: str, checkpoint: Path, folder: Path, step: int) -> Path:
    """Return a copy of a checkpoint that says it was saved at `step`."""
    root = folder / "checkpoints"
    staged = root / (STAGING if way == "ladle" else "") / f"checkpoint-{step}"
    shutil.copytree(checkpoint, staged)
    path = staged / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": step}))
    if way == "trainer":
        return staged
    (staged / MANIFEST).unlink()
    return seal(staged, root)


def time_first_step(way: str, num_rows: int, checkpoint: Path, share: float) -> float:
    """Return the seconds from the start of training to the end of the first step after resuming."""
    with tempfile.TemporaryDirectory() as name:
        folder, step = Path(name), int(share * num_rows / BATCH)
        moved = move(way, checkpoint, folder, step)
        trainer = make_trainer(way, num_rows, folder)
        started = time.perf_counter()
        ended = start(trainer, moved)
        assert trainer.state.global_step == step + 1, f"{way} went on at {trainer.state.global_step}"
        return ended - started


def run_all(num_rows: int, runs: int) -> dict[tuple[str, float], list[float]]:
    """Measure both ways at every share, in turn; return the seconds of each run."""
    seconds: dict[tuple[str, float], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        first = {way: save_first_checkpoint(way, num_rows, Path(name) / way) for way in ("trainer", "ladle")}
        for _ in range(runs):
            for share in SHARES:
                for way, checkpoint in first.items():
                    taken = time_first_step(way, num_rows, checkpoint, share)
                    seconds.setdefault((way, share), []).append(taken)
    return seconds


def main() -> None:
    """Parse, measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=7_500_000)
    parser.add_argument("--runs", type=int, default=3)
    options = results.parse(parser, rows=200_000, runs=2)
    print(f"{'place':>6} {'trainer (s)':>12} {'ladle (s)':>12} {'ratio':>8}")
    seconds, ratios = run_all(options.rows, options.runs), {}
    for share in SHARES:
        plain, own = median(seconds["trainer", share]), median(seconds["ladle", share])
        print(f"{share:>6.0%} {plain:>12.2f} {own:>12.2f} {plain / own:>8.2f}")
        ratios[f"vs_trainer_{share:.0%}"] = plain / own
    samples = {f"{way}_{share:.0%}_seconds": taken for (way, share), taken in seconds.items()}
    results.publish("bench_resume", samples, ratios, options.quick)


if __name__ == "__main__":
    main()
