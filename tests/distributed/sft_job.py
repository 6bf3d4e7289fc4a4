"""A small SFT on generated problems, as chats."""

from __future__ import annotations

import json
from pathlib import Path

from ladle.data import prefer, sft
from ladle.data.config import SftDataConfig, SftPreferConfig, WordProblemsConfig
from ladle.data.word_problems import write_word_problems
from ladle.models.load import save_model
from ladle.training.config import SftConfig
from tests.distributed.pretrain_job import SAVE_EVERY, STEPS, Job
from tests.tiny_models import make_model, make_tokenizer


def make_sft_job(folder: Path, shape: str, processes: int = 1, dtype: str = "float32", distributed: str = "ddp") -> Job:
    """Write a model and the tokens of chats of two answers, and return the training on them."""
    model, tokenizer = folder / "base", make_tokenizer()
    save_model(make_model(shape, len(tokenizer)), tokenizer, model)
    write_word_problems(
        WordProblemsConfig(train=120, worksheets=2, prompts=2, validation=2, test=2), folder / "problems"
    )
    problems = [json.loads(line) for line in (folder / "problems" / "worked.jsonl").read_text().splitlines()]
    rows = folder / "rows.jsonl"
    with rows.open("w") as stream:
        for one, other in zip(problems[::2], problems[1::2], strict=True):
            turns = [
                (role, p[key]) for p in (one, other) for role, key in (("user", "question"), ("assistant", "solution"))
            ]
            stream.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    for name in ("preference", "data"):
        (folder / name).mkdir()
    joined = SftPreferConfig.model_validate({"data": [{"dataset": str(rows), "format": "messages"}]})
    prefer.run(joined, {"source:0": [rows]}, folder / "preference")
    inputs = {"tokenizer": [model], "preference": [folder / "preference"]}
    sft.run(SftDataConfig(max_length=256), inputs, folder / "data")
    trainer = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "save_steps": SAVE_EVERY,
        "save_total_limit": 2,
        "logging_steps": 1,
        "seed": 7,
    }
    sections = {"trainer": trainer, "dtype": dtype, "processes": processes, "distributed": distributed}
    return Job(SftConfig.model_validate(sections), {"model": [model], "mixture": [folder / "data"]}, stage="sft")
