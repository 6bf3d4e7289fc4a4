"""The one-pass head against PyTorch's cross-entropy on full logits.

Tolerance: both are float32 with other summation orders; 1e-5 relative is some ten roundings. In float64 the formulas
must agree to 1e-12.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from ladle.models.probe import Traits, why_not_linear
from ladle.training import cross_entropy as module
from ladle.training.cross_entropy import linear_cross_entropy_sum, use_linear_cross_entropy
from tests.tiny_models import SHAPES, make_model


@pytest.mark.parametrize("chunk_elements", [50, 350, 2**24])
def test_loss_and_gradients_are_those_of_the_full_logits(monkeypatch, chunk_elements):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_elements)
    torch.manual_seed(0)
    target = torch.randint(50, (23,))
    hidden, weight = torch.randn(23, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    (2.5 * linear_cross_entropy_sum(hidden, weight, target)).backward()
    ours = hidden.grad, weight.grad
    hidden64, weight64 = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    expected = 2.5 * F.cross_entropy(hidden64 @ weight64.T, target, reduction="sum")
    expected.backward()
    for gradient, reference in zip(ours, (hidden64.grad, weight64.grad), strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_models_loss_and_gradients_do_not_change(shape):
    plain = make_model(shape).train()
    fused = copy.deepcopy(plain)
    use_linear_cross_entropy(fused)
    ids = torch.randint(2, 300, (2, 24))
    labels = ids.clone()
    labels[:, 0] = labels[0, 10:14] = -100
    positions = torch.arange(24).expand(2, 24) % 12
    batch = {"input_ids": ids, "position_ids": positions, "labels": labels, "use_cache": False}
    losses = [model(**batch).loss for model in (plain, fused)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for (name, one), two in zip(plain.named_parameters(), fused.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)


SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
OTHER_HEADS = {
    "granite": ("changed after its head", {"logits_scaling": 3.0}),
    "gemma2": ("changed after its head", {"final_logit_softcapping": 2.0, "attn_implementation": "eager"}),
    "recurrent_gemma": ("changed after its head", {"logits_soft_cap": 2.0, "block_types": ["attention"]}),
    "phi": ("its output head has a bias", {}),
}


@pytest.mark.parametrize("model_type", OTHER_HEADS)
def test_a_head_that_is_no_matrix_keeps_its_own_loss(model_type):
    why, fields = OTHER_HEADS[model_type]
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL, **fields)).eval()
    fused = copy.deepcopy(plain)
    if model_type == "phi":
        for model in (plain, fused):
            torch.nn.init.constant_(model.lm_head.bias[:7], 3.0)
    traits = Traits(why_own_logits=why_not_linear(fused))
    assert why in str(traits.why_own_logits)
    use_linear_cross_entropy(fused, traits)
    ids = torch.randint(2, 300, (2, 24))
    batch = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(24).expand(2, 24), "use_cache": False}
    losses = [model(**batch).loss for model in (plain, fused)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for (name, one), two in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_without_labels_the_logits_come_as_ever():
    model = make_model("qwen3")
    ids = torch.randint(2, 300, (1, 5))
    before = model(input_ids=ids).logits
    use_linear_cross_entropy(model)
    assert torch.equal(model(input_ids=ids).logits, before)
