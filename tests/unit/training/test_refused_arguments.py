"""Settings that cannot work are refused before a model is loaded, each with its way out."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from ladle.errors import UserError
from ladle.models.attention import usable_attention
from ladle.training.config import PretrainConfig
from ladle.training.hf_arguments import make_arguments


def refused(folder, trainer: dict | None = None, **section: object) -> str:
    with pytest.raises(UserError) as caught:
        make_arguments(PretrainConfig.model_validate({"trainer": trainer or {}, **section}), folder)
    return str(caught.value)


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install wandb" in refused(tmp_path, {"report_to": ["wandb"]})
    assert "pip install trackio" in refused(tmp_path, {"report_to": "trackio"})


def test_loading_the_best_model_at_the_end(tmp_path):
    message = refused(tmp_path, {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1})
    assert "soup: {select: …}" in message


def test_zero2_in_one_process_without_deepspeed_or_with_skips(tmp_path, monkeypatch):
    assert "and there is one" in refused(tmp_path, distributed="zero2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "nan_policy: skip does not work" in refused(tmp_path, distributed="zero2", processes=2, nan_policy="skip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "ladle[deepspeed]" in refused(tmp_path, distributed="zero2", processes=2)


def test_more_processes_than_were_started_or_than_gpus(tmp_path, monkeypatch):
    assert "asks for 4 processes a machine and 1 were started" in refused(tmp_path, processes=4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "this machine has 2 GPUs" in refused(tmp_path, processes=4)


def test_flash_attention_gives_way_to_sdpa_aloud(caplog):
    assert usable_attention("eager") == "eager"
    with caplog.at_level("WARNING", logger="ladle"):
        assert usable_attention("flash_attention_2") == "sdpa"
    assert "attn_implementation: flash_attention_2 cannot run here (it needs a GPU): using sdpa" in caplog.text
