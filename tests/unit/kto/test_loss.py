from __future__ import annotations

import pytest
import torch

from ladle.kto.loss import KtoWeights, kto_loss, reference_points

ONE = KtoWeights(0.1, 1.0, 1.0)


def test_the_loss_at_the_reference_is_half_the_weight():
    loss = kto_loss(torch.zeros(2), torch.tensor([True, False]), torch.tensor(0.0), KtoWeights(0.1, 2.0, 3.0))
    assert loss.tolist() == [1.0, 1.5]


def test_desirable_ratios_lower_the_loss_and_undesirable_ones_raise_it():
    ratio = torch.tensor([5.0, 5.0], requires_grad=True)
    kto_loss(ratio, torch.tensor([True, False]), torch.tensor(0.0), ONE).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad[0] < 0 < ratio.grad[1]


def test_a_reference_point_is_the_mean_of_its_group_and_never_negative():
    sums, counts = torch.tensor([6.0, -3.0, 0.0]), torch.tensor([3.0, 3.0, 0.0])
    assert reference_points(sums, counts).tolist() == [2.0, 0.0, 0.0]


def test_without_z0_the_loss_is_apo_zeros():
    ratio = torch.linspace(-20, 20, 9)
    for label, expected in ((True, 1 - torch.sigmoid(0.1 * ratio)), (False, torch.sigmoid(0.1 * ratio))):
        loss = kto_loss(ratio, torch.full((9,), label), torch.tensor(0.0), ONE)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("z0", [0.0, 3.0])
def test_the_loss_is_the_papers_value_function(z0: float):
    ratio = torch.tensor([1.0, -2.0])
    loss = kto_loss(ratio, torch.tensor([True, False]), torch.tensor(z0), KtoWeights(0.5, 1.2, 0.8))
    by_hand = [
        1.2 * (1 - torch.sigmoid(torch.tensor(0.5 * (1.0 - z0)))),
        0.8 * (1 - torch.sigmoid(torch.tensor(0.5 * (z0 + 2.0)))),
    ]
    torch.testing.assert_close(loss, torch.stack(by_hand))
