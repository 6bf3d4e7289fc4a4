"""A float64 training of a dense model on rows in memory; prints its losses. Run by torchrun, or alone."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from ladle.training.cross_entropy import use_linear_cross_entropy
from tests.tiny_models import make_model
from tests.training_runs import make_rows, prepare


def main() -> None:
    """Train in as many processes as were started, with as many rows a step."""
    processes = int(sys.argv[1])
    model = make_model("llama").double()
    model.config.use_cache = False
    use_linear_cross_entropy(model)
    trainer = {
        "max_steps": 20,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4 // processes,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    with tempfile.TemporaryDirectory() as folder:
        section = {"distributed": "fsdp", "processes": processes} if processes > 1 else {}
        training = prepare(model, make_rows(64, 32), Path(folder), trainer, **section)
        training.run()
    if training.world.is_main:
        log = [entry for entry in training.state.log_history if "loss" in entry]
        found = {key: [entry[key] for entry in log] for key in ("loss", "grad_norm")}
        sys.stdout.write("\n" + json.dumps(found | {"wrapper": training.parallel.wrapper}) + "\n")


if __name__ == "__main__":
    main()
