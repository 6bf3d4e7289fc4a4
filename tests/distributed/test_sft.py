"""SFT killed and resumed: the same bytes; and with adapters."""

from __future__ import annotations

import os
import random

import pytest
import torch

from ladle.models.load import load_model
from ladle.stages import sft
from tests.distributed import kill_training
from tests.distributed.sft_job import make_sft_job

KILLS = int(os.environ.get("LADLE_KILLS", "4"))
SEED = int(os.environ.get("LADLE_KILL_SEED", random.SystemRandom().randrange(2**31)))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_sft_ends_with_the_same_bytes():
    seen = kill_training.run_apart("deepseek_v3", 2, KILLS, SEED, stage="sft")
    assert seen["kills"] >= KILLS, seen


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, {"load_in_4bit": True}], ids=["lora", "qlora"])
def test_an_adapter_is_trained_and_merged(quantization, tmp_path):
    if quantization:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quantization`)")
    job = make_sft_job(tmp_path, "llama_64")
    changes = {"trainer": job.config.trainer.values() | {"max_steps": 2, "save_strategy": "no"}, "peft": {"r": 4}}
    config = type(job.config).model_validate(job.config.model_dump() | changes | {"quantization": quantization})
    out = tmp_path / "out"
    out.mkdir()
    sft.run(config, job.inputs, out)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    trained, start = (load_model(folder).state_dict() for folder in (out / "model", job.inputs["model"][0]))
    moved = {name for name in start if not torch.equal(trained[name], start[name])}
    assert moved == {name for name in start if name.endswith("proj.weight")}
    assert (out / "model" / "chat_template.jinja").is_file()
