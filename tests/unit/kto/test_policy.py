"""Training whole models, adapters, and adapters on quantized weights, through the stages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from ladle.kto.config import KtoConfig
from ladle.models.load import load_model
from ladle.stages import kto
from tests.distributed.kto_job import make_kto_job

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (ladle[quantization])"
)
LORA = {"r": 4, "lora_alpha": 8}
ONCE = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no"}


def train(folder: Path, shape: str, **changes: Any) -> tuple[Path, list[dict]]:
    job = make_kto_job(folder, shape, **(ONCE | changes))
    out = folder / "out"
    out.mkdir()
    kto.run(job.config, job.inputs, out)
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    return out, [entry for entry in log if "loss" in entry]


def test_metrics_have_trls_names_and_start_at_the_reference(tmp_path):
    _, log = train(tmp_path, "qwen3")
    assert {
        "loss", "grad_norm", "kl", "z0", "entropy", "nll/chosen", "completion_length", "rewards/chosen",
        "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "count/chosen", "count/rejected",
    } <= log[0].keys()  # fmt: skip
    assert log[0]["rewards/chosen"] == log[0]["kl"] == 0
    assert log[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert log[-1]["rewards/chosen"] != 0


def test_evaluation_logs_the_same_metrics_on_the_other_split(tmp_path):
    job = make_kto_job(tmp_path, "qwen3", **ONCE, eval_strategy="steps", eval_steps=1)
    out = tmp_path / "out"
    out.mkdir()
    kto.run(job.config, job.inputs, out)
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    evaluations = [entry for entry in log if "eval_loss" in entry]
    assert len(evaluations) == 3
    assert evaluations[0]["eval_count/chosen"] + evaluations[0]["eval_count/rejected"] == 12
    assert {"eval_kl", "eval_z0", "eval_rewards/margins", "eval_entropy"} <= evaluations[0].keys()
    assert evaluations[0]["eval_loss"] != evaluations[2]["eval_loss"]


def test_no_z0_is_estimated_where_the_loss_has_none(tmp_path):
    _, log = train(tmp_path, "qwen3", loss_type="apo_zero_unpaired", learning_rate=1e-2)
    assert "kl" not in log[0]
    assert all(entry["z0"] == 0 for entry in log)


@pytest.mark.parametrize("shape", ["qwen3", "deepseek_v3"])
def test_an_adapter_is_saved_alone_and_merged(shape, tmp_path):
    out, log = train(tmp_path, shape, peft=LORA, learning_rate=1e-2)
    assert log[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    base, merged = load_model(tmp_path / "base"), load_model(out / "model")
    changed = [name for name, value in base.state_dict().items() if not torch.equal(value, merged.state_dict()[name])]
    assert changed
    assert not [name for name in changed if "lm_head" in name or "embed" in name]
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert adapter
    assert not [name for name in adapter if "lm_head" in name]
    assert str(tmp_path) not in (out / "adapter" / "adapter_config.json").read_text()


@pytest.mark.slow
@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_an_adapter_trains_on_quantized_weights(bits, tmp_path):
    out, log = train(tmp_path, "llama_64", peft=LORA, quantization={bits: True}, learning_rate=1e-2)
    assert log[0]["rewards/chosen"] == pytest.approx(0, abs=1e-2)
    assert log[-1]["rewards/chosen"] != log[0]["rewards/chosen"]
    assert load_model(out / "model").dtype == torch.float32


def test_what_does_not_go_together_is_refused():
    for values, match in (
        ({"peft": {"target_modules": ["q_proj", "lm_head"]}}, "the output head"),
        ({"quantization": {"load_in_4bit": True}}, "no adapter to train"),
        ({"peft": {}, "quantization": {}}, "neither of load_in_4bit"),
        ({"sync_ref_model": True}, "kto.sync_ref_model: the reference's log-probabilities are computed once"),
    ):
        with pytest.raises(ValidationError, match=match):
            KtoConfig.model_validate(values)
    KtoConfig.model_validate({"sync_ref_model": False})
