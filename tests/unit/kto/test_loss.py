"""The KTO loss by hand, and its one-pass head against autograd through the full logits, in float64 for the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from ladle.kto import loss as kto_loss_module
from ladle.kto.data import make_bin
from ladle.kto.loss import (
    KtoWeights,
    blocks,
    completion_logps,
    kto_loss,
    loss_of_completions,
    prepare_policy,
    reference_points,
    use_kto_forward,
)
from tests.tiny_models import make_tokenizer
from tests.unit.kto.samples import PAD_ID, examples_of

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


SIZES, WEIGHTS = [7, 3, 12, 1], KtoWeights(0.1, 1.3, 0.7)
IS_DESIRABLE = torch.tensor([True, False, True, False])


def objective(logp: torch.Tensor, which: slice) -> torch.Tensor:
    reference = torch.tensor([-30.0, -9.0, -50.0, -4.0], dtype=logp.dtype)
    return kto_loss(logp - reference[which], IS_DESIRABLE[which], torch.tensor(0.4, dtype=logp.dtype), WEIGHTS)


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(sum(SIZES), 16, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(50, 16, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, 50, (sum(SIZES),))


def by_autograd(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    hidden, weight, target = inputs(dtype)
    logp = (hidden @ weight.T).log_softmax(-1)
    sums = torch.stack([part.sum() for part in logp.gather(1, target[:, None])[:, 0].split(SIZES)])
    loss = objective(sums, slice(0, 4)).sum()
    loss.backward()
    entropy = torch.stack([-part.sum() for part in (logp.exp() * logp).split(SIZES)])
    assert hidden.grad is not None
    assert weight.grad is not None
    return loss.detach(), sums.detach(), entropy.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize(("block", "kept"), [(1_000, 1_000), (8, 8), (4, 4), (4, 1_000), (1, 1)])
def test_loss_entropy_and_gradients_are_autograds_however_the_tokens_are_cut(block, kept, monkeypatch):
    monkeypatch.setattr(kto_loss_module, "BLOCK_TOKENS", block)
    monkeypatch.setattr(kto_loss_module, "BLOCK_ELEMENTS", block * 50)
    monkeypatch.setattr(kto_loss_module, "KEPT_ELEMENTS", kept * 50)
    hidden, weight, target = inputs(torch.float32)
    loss, logp, entropy = loss_of_completions(hidden, weight, target, SIZES, objective)
    (2 * loss).backward()
    truth = by_autograd(torch.float64)
    for ours, theirs in zip((loss, logp, entropy), truth[:3], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    for tensor, theirs in zip((hidden, weight), truth[3:], strict=True):
        assert tensor.grad is not None
        assert (tensor.grad / 2 - theirs).norm() <= 2e-6 * theirs.norm()
    torch.testing.assert_close(completion_logps(hidden, weight, target, SIZES), logp, rtol=1e-6, atol=1e-5)


def test_gradients_are_no_farther_from_float64_than_autograds_own():
    hidden, weight, target = inputs(torch.float32)
    loss_of_completions(hidden, weight, target, SIZES, objective)[0].backward()
    truth, autograd = by_autograd(torch.float64), by_autograd(torch.float32)
    for tensor, exact, theirs in zip((hidden, weight), truth[3:], autograd[3:], strict=True):
        assert tensor.grad is not None
        assert (tensor.grad - exact).norm() <= 2 * (theirs - exact).norm() + 1e-7 * exact.norm()


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, target = inputs(torch.float32)
    weight.requires_grad_(False)
    loss_of_completions(hidden, weight, target, SIZES, objective)[0].backward()
    assert weight.grad is None
    assert hidden.grad is not None


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 50))
def test_blocks_cover_everything_once_within_capacity(sizes, capacity):
    found = blocks(sizes, capacity)
    assert [size for _, _, part in found for size in part] == sizes
    assert [index for which, _, _ in found for index in range(which.start, which.stop)] == list(range(len(sizes)))
    assert [token for _, tokens, _ in found for token in range(tokens.start, tokens.stop)] == list(range(sum(sizes)))
    assert all(sum(part) <= capacity or len(part) == 1 for _, _, part in found)


SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
CURVED: dict[str, dict[str, Any]] = {
    "a bias": {"model_type": "phi", "partial_rotary_factor": 0.5},
    "a scale": {"model_type": "cohere", "logit_scale": 0.125},
    "a divisor": {"model_type": "granite", "logits_scaling": 4.0},
    "a soft cap": {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 5.0},
}


@pytest.mark.parametrize("fields", CURVED.values(), ids=CURVED)
def test_a_head_that_is_more_than_a_matrix_gives_the_models_own_logits_and_gradients(fields):
    """Loss, log-probabilities, entropies and gradients against autograd through the logits that the model returns."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**SMALL | fields, vocab_size=len(make_tokenizer()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.get_output_embeddings().parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # logits of some units, where a curve is one
    prompts, completions = np.arange(4), np.array([1, 2, 3, 0])
    examples = examples_of(4)
    traits = prepare_policy(model)
    assert traits.why_own_logits
    one_bin = make_bin(examples, prompts, completions, PAD_ID, use_kto_forward(model, traits))
    reference = model(bin=one_bin) + torch.tensor([0.5, -0.5, 1.0, 0.0])

    def objective(logp: torch.Tensor, which: slice) -> torch.Tensor:
        return kto_loss(logp - reference[which], IS_DESIRABLE[which], torch.tensor(0.1), WEIGHTS)

    loss, logp, entropy = model(bin=one_bin, objective=objective)
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logps, entropies = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        start, end = examples.prompt(prompt).tolist(), examples.completion(completion, prompt).tolist()
        logits = model(input_ids=torch.tensor([start + end])).logits[0, len(start) - 1 : -1].float()
        terms = logits.log_softmax(-1)
        logps.append(terms.gather(1, torch.tensor(end)[:, None]).sum())
        entropies.append(-(terms.exp() * terms).sum())
    objective(torch.stack(logps), slice(None)).sum().backward()
    torch.testing.assert_close(logp, torch.stack(logps).detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(entropy, torch.stack(entropies).detach(), rtol=1e-5, atol=1e-4)
    for name, parameter in model.named_parameters():
        assert (ours[name] - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-6, name
