"""The router-bias update keeps experts busy that a skewed router would starve; the sequence-wise loss, by formula."""

from __future__ import annotations

import copy
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ladle.models.probe import BIAS, find_routers
from ladle.training.balance import BalanceExperts, SequenceAuxLoss, load_figures, row_balance
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.loop import Training
from tests.families.sweep import FAMILIES, SIZES
from tests.tiny_models import make_model
from tests.training_runs import make_rows
from tests.training_runs import train as run_training

NUM_ROWS, LENGTH = 64, 32


def skewed_model(num_experts: int = 4):
    """A DeepSeek-V3 whose routers all prefer two of their experts: those two's biases are raised."""
    model = make_model("deepseek_v3", n_routed_experts=num_experts)
    for module in model.modules():
        if hasattr(module, BIAS):
            getattr(module, BIAS)[:2] += 0.5
    return model


def train(model, rate: float, folder: Path, steps: int, **more: Any) -> Training:
    use_linear_cross_entropy(model)
    trainer = {
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "logging_steps": 1,
    } | more
    return run_training(model, make_rows(NUM_ROWS, LENGTH), folder, trainer, router_bias_update_rate=rate)


def worst_load(training: Training) -> float:
    """Return the median of the last twenty steps: a step of 512 tokens swings by a tenth."""
    return median([row["experts/max_over_mean"] for row in training.state.log_history if "loss" in row][-20:])


@pytest.mark.slow
def test_a_skewed_router_is_balanced_with_the_update_and_not_without(tmp_path):
    model = skewed_model(num_experts=8)
    without = worst_load(train(copy.deepcopy(model), 0.0, tmp_path, 100))
    balanced = worst_load(train(copy.deepcopy(model), 1e-2, tmp_path, 100))
    assert without >= 3, "two of eight experts take everything: 4 is the most that max/mean can be"
    assert balanced <= 1.5


def test_loads_are_counted_over_accumulation_and_move_the_bias_by_the_rate(tmp_path):
    model = skewed_model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if BIAS in name}
    train(model, 1e-2, tmp_path, 1)
    assert before
    for name, buffer in model.named_buffers():
        if BIAS in name:
            moved = buffer - before[name]
            assert set(moved.abs().double().round(decimals=4).tolist()) <= {0.0, 0.01}
            assert moved[:2].max() < 0 < moved[2:].min()


def test_a_bias_that_is_a_row_of_a_matrix_moves_too(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("ernie4_5_moe", **SIZES | FAMILIES["ernie4_5_moe"], vocab_size=320)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    routers = find_routers(model)
    before = {name: router.bias.detach().clone() for name, router in routers.items()}
    training = train(model, 1e-2, tmp_path, 1)
    assert [load.sum() for load in training.balance.loads] == [16 * LENGTH * config.moe_k] * len(routers)
    for name, load in zip(sorted(routers), training.balance.loads, strict=True):
        expected = before[name] + 1e-2 * torch.sign(load.float().mean() - load)
        assert expected.shape == (1, config.moe_num_experts)
        torch.testing.assert_close(routers[name].bias.detach(), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_that_are_computed_again_are_counted_once(reentrant, tmp_path):
    again = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    model = skewed_model()
    plain = train(copy.deepcopy(model), 0.0, tmp_path, 1).balance.loads
    assert [load.sum() for load in plain] == [16 * LENGTH * model.config.num_experts_per_tok] * len(plain)
    loads = train(model, 0.0, tmp_path, 1, **again).balance.loads
    assert all(torch.equal(one, other) for one, other in zip(loads, plain, strict=True))


def test_figures_name_the_worst_router_and_the_unused_experts():
    figures = load_figures([torch.tensor([4, 4, 4, 4]), torch.tensor([12, 4, 0, 0])])
    assert figures == {"experts/max_over_mean": 3.0, "experts/unused": 2.0}


def test_a_dense_model_has_no_figures(tmp_path):
    training = train(make_model("qwen3"), 1e-2, tmp_path, 1)
    assert not any("experts" in key for row in training.state.log_history for key in row)
    assert isinstance(training.balance, BalanceExperts)


def balance_by_hand(logits, chosen, num_rows):
    """DeepSeek-V3's equations 17-20, loop by loop."""
    experts, top_k = logits.shape[1], chosen.shape[1]
    length = logits.shape[0] // num_rows
    rows = []
    for row in range(num_rows):
        total = 0.0
        for expert in range(experts):
            chose = share = 0.0
            for token in range(row * length, (row + 1) * length):
                scores = torch.sigmoid(logits[token].double())
                chose += float(expert in chosen[token].tolist())
                share += float(scores[expert] / scores.sum())
            total += experts / (top_k * length) * chose * share / length
        rows.append(total)
    return torch.tensor(rows)


def test_it_is_the_formula():
    torch.manual_seed(0)
    logits = torch.randn(24, 6)
    chosen = torch.stack([torch.randperm(6)[:2] for _ in range(24)])
    torch.testing.assert_close(row_balance(logits, chosen, 3), balance_by_hand(logits, chosen, 3), rtol=1e-5, atol=0)


def test_it_is_one_where_experts_are_loaded_alike():
    chosen = torch.tensor([[0, 1], [2, 3]]).repeat(4, 1)
    assert row_balance(torch.zeros(8, 4), chosen, 2).tolist() == pytest.approx([1.0, 1.0])


def test_it_grows_with_imbalance():
    logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).repeat(8, 1)
    assert row_balance(logits, torch.tensor([[0, 1]]).repeat(8, 1), 1).item() > 1.9


def test_the_forward_adds_it_to_the_mean_and_routers_get_a_gradient():
    model = make_model("deepseek_v3").train()
    tokens = torch.randint(2, 300, (2, 16))
    use_linear_cross_entropy(model)
    plain = model(input_ids=tokens, labels=tokens).loss
    other = make_model("deepseek_v3").train()
    aux = SequenceAuxLoss(find_routers(other), 0.5)
    use_linear_cross_entropy(other, aux_loss=aux)
    with_aux = other(input_ids=tokens, labels=tokens).loss
    assert aux.last >= 2.0 - 1e-4, "two routers, each at least about 1"
    torch.testing.assert_close(with_aux - plain, torch.tensor(0.5 * aux.last), rtol=1e-4, atol=1e-5)
    plain.backward()
    with_aux.backward()
    name = "model.layers.1.mlp.gate.weight"
    assert not torch.equal(model.get_parameter(name).grad, other.get_parameter(name).grad)


def test_evaluation_leaves_it_out():
    model = make_model("deepseek_v3").eval()
    aux = SequenceAuxLoss(find_routers(model), 0.5)
    use_linear_cross_entropy(model, aux_loss=aux)
    tokens = torch.randint(2, 300, (2, 16))
    loss = model(input_ids=tokens, labels=tokens).loss
    plain = make_model("deepseek_v3").eval()
    use_linear_cross_entropy(plain)
    assert torch.equal(loss, plain(input_ids=tokens, labels=tokens).loss)
