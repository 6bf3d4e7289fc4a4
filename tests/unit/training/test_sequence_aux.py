"""The sequence-wise balance loss against its formula, and that training takes it in."""

from __future__ import annotations

import pytest
import torch

from ladle.training.balance import SequenceAuxLoss, row_balance
from ladle.training.cross_entropy import use_linear_cross_entropy
from tests.tiny_models import make_model


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
    aux = SequenceAuxLoss(other, 0.5)
    use_linear_cross_entropy(other, aux)
    with_aux = other(input_ids=tokens, labels=tokens).loss
    assert aux.last >= 2.0 - 1e-4, "two routers, each at least about 1"
    torch.testing.assert_close(with_aux - plain, torch.tensor(0.5 * aux.last), rtol=1e-4, atol=1e-5)
    plain.backward()
    with_aux.backward()
    name = "model.layers.1.mlp.gate.weight"
    assert not torch.equal(model.get_parameter(name).grad, other.get_parameter(name).grad)


def test_evaluation_leaves_it_out():
    model = make_model("deepseek_v3").eval()
    aux = SequenceAuxLoss(model, 0.5)
    use_linear_cross_entropy(model, aux)
    tokens = torch.randint(2, 300, (2, 16))
    loss = model(input_ids=tokens, labels=tokens).loss
    plain = make_model("deepseek_v3").eval()
    use_linear_cross_entropy(plain)
    assert torch.equal(loss, plain(input_ids=tokens, labels=tokens).loss)
