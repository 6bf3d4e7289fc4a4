"""A small KTO training on generated preference data, its reference pass done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ladle.artifacts.worker import run_in_processes
from ladle.kto.config import KtoConfig, KtoReferenceConfig
from ladle.models.load import save_model
from ladle.stages import kto_reference
from tests.distributed.pretrain_job import SAVE_EVERY, STEPS, Job
from tests.tiny_models import make_model, make_tokenizer
from tests.unit.kto.samples import rows


def make_inputs(folder: Path, shape: str, num_rows: int) -> dict[str, list[Path]]:
    """Write a model and preference data."""
    model, tokenizer = folder / "base", make_tokenizer()
    save_model(make_model(shape, len(tokenizer)), tokenizer, model)
    data = DatasetDict({"train": Dataset.from_list(rows(num_rows)), "test": Dataset.from_list(rows(12))})
    data.save_to_disk(folder / "data" / "preference")
    return {"model": [model], "preference": [folder / "data"]}


def make_config(processes: int = 1, distributed: str = "ddp", dtype: str = "float32", **changes: Any) -> KtoConfig:
    """Return a training of 40 steps over several epochs; `changes` are of the section or, other names, the trainer."""
    trainer = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4 // processes,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "save_steps": SAVE_EVERY,
        "save_total_limit": 2,
        "logging_steps": 3,
        "seed": 7,
    }
    section: dict[str, Any] = {"max_length": 128, "max_tokens_per_microbatch": 128}
    for name, value in changes.items():
        (section if name in KtoConfig.model_fields else trainer)[name] = value
    section |= {"processes": processes, "distributed": distributed, "dtype": dtype, "trainer": trainer}
    return KtoConfig.model_validate(section)


def make_kto_job(
    folder: Path, shape: str, processes: int = 1, dtype: str = "float32", distributed: str = "ddp", **changes: Any
) -> Job:
    """Write everything and run the reference pass, in this process."""
    config = make_config(processes, distributed, dtype, **changes)
    inputs = make_inputs(folder, shape, 90)
    reference = run_reference(config, inputs, folder / "reference")
    return Job(config, inputs | {"reference": [reference]}, stage="kto")


def run_reference(config: KtoConfig, inputs: dict[str, list[Path]], out: Path) -> Path:
    """Run the reference pass that a training needs, in as many processes, and return its folder."""
    out.mkdir()
    passes = KtoReferenceConfig.of(config, config.seed)
    if passes.processes > 1:
        run_in_processes("kto_reference", passes, inputs, out, passes.processes)
    else:
        kto_reference.run(passes, inputs, out)
    return out
