"""FLOPs a token against a count by hand, peaks by device name, and what is logged."""

from __future__ import annotations

import pytest
import torch

from ladle.training import progress
from ladle.training.progress import Speedometer, flops_per_token, peak_flops
from tests.tiny_models import make_model


def test_flops_of_a_dense_model_are_those_counted_by_hand():
    model = make_model("qwen3", vocab_size=320)  # hidden 64, 4 heads of 16, 2 of them keys, MLP 96, 2 layers, tied
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    attention = 2 * 12 * 4 * 16 * 128 / 2
    assert flops_per_token(model, 128) == 6 * (2 * layer + 320 * 64) + attention


def test_only_the_experts_a_token_visits_count():
    model = make_model("deepseek_v3")
    expert = 3 * 64 * 32
    fewer = make_model("deepseek_v3")
    fewer.config.num_experts_per_tok = 1
    assert flops_per_token(model, 1) - flops_per_token(fewer, 1) == 6 * 2 * expert  # two MoE layers


def test_openseek_uses_under_a_third_of_its_weights():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "deepseek_v3",
        vocab_size=151851,
        hidden_size=1280,
        intermediate_size=7168,
        moe_intermediate_size=896,
        num_hidden_layers=6,
        first_k_dense_replace=1,
        num_attention_heads=10,
        num_key_value_heads=10,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert 0.38e9 < flops_per_token(model, 0) / 6 < 0.41e9, "0.397B active, the head's 0.194B included"


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-40GB", 312e12), ("X", None)],
)
def test_peaks_go_by_the_device_name(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == peak
    assert peak_flops(torch.device("cuda", 0), torch.float32) is None


def test_a_reading_counts_all_processes_and_a_cpu_has_no_mfu(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    meter = Speedometer(make_model("qwen3"), torch.device("cpu"), torch.float32, num_processes=2)
    meter.count({"input_ids": torch.zeros(2, 64)})
    meter.count({"input_ids": torch.zeros(1, 72), "labels": torch.zeros(5)})
    now[0] += 2.0
    figures = meter.read()
    assert figures["tokens_per_second"] == 2 * 200 / 2
    assert figures["memory_gb"] > 0.05
    assert "mfu" not in figures
    now[0] += 1.0
    assert meter.read().keys() == {"memory_gb"}


def test_mfu_is_flops_over_the_peak(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress, "peak_flops", lambda device, dtype: 1e9)
    model = make_model("qwen3")
    meter = Speedometer(model, torch.device("cpu"), torch.bfloat16, num_processes=4)
    meter.count({"input_ids": torch.zeros(1, 50)})
    now[0] += 0.5
    assert meter.read()["mfu"] == pytest.approx(100 * flops_per_token(model, 50) / 1e9)


def test_seconds_per_step_leave_the_first_step_out_unless_it_is_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    meter = Speedometer(make_model("qwen3"), torch.device("cpu"), torch.float32, num_processes=1)
    meter.note_time()
    assert meter.seconds_per_step() is None
    seen = []
    for seconds in (30.0, 1.0, 2.0):
        now[0] += seconds
        meter.note_time()
        seen.append(meter.seconds_per_step())
    assert seen == [30.0, 1.0, 1.5]
