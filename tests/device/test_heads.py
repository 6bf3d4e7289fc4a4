"""The heads of pretraining and KTO as on a GPU, in bfloat16: products in float32, and blocks of a GPU's size.

The truth is float64 of the same bfloat16 numbers; what must be met is plain PyTorch in bfloat16 on the same device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ladle.data.store import IGNORED_LABEL
from ladle.kto.loss import completion_logps, loss_of_completions
from ladle.training import head
from ladle.training.cross_entropy import linear_cross_entropy_sum
from tests.device.pretended import PretendedGpu

SIZES, HIDDEN, VOCABULARY, SCALE = [70, 3, 120, 1, 62], 64, 501, 1 / 37
"""Tokens of completions, an odd vocabulary, and what a loss is multiplied by on the way back."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def objective(logp_b: Tensor, which: slice) -> Tensor:
    reference_B = torch.tensor([-450.0, -20.0, -700.0, -6.0, -400.0]).to(logp_b.device, non_blocking=True)
    return 1 - torch.sigmoid((logp_b - reference_B[which]) / 50)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=IGNORED_LABEL, reduction="sum")


def kto(logits: Tensor, target: Tensor) -> Tensor:
    logp = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    return objective(torch.stack([part.sum() for part in logp.split(SIZES)]), slice(None)).sum()


HEADS: dict[str, tuple[Loss, Callable[[Tensor, Tensor], Tensor]]] = {
    "cross-entropy": (linear_cross_entropy_sum, cross_entropy),
    "KTO": (lambda h, w, t: loss_of_completions(h, w, t, SIZES, objective)[0], kto),
}


def loss_and_gradients(loss: Loss, dtype: torch.dtype, device: str, ignores: bool) -> list[Tensor]:
    """Return the loss and the gradients of hidden states and head, each float64 on the CPU."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(size, HIDDEN).bfloat16().to(dtype) for size in (sum(SIZES), VOCABULARY))
    target = torch.randint(VOCABULARY, (sum(SIZES),))
    if ignores:
        target[20:90] = IGNORED_LABEL
    inputs = [tensor.to(device).requires_grad_() for tensor in (hidden, weight / 4)]
    found = loss(*inputs, target.to(device))
    gradients = torch.autograd.grad(SCALE * found, inputs)
    return [tensor.detach().cpu().double() for tensor in (found, *gradients)]


@pytest.mark.parametrize("block", [4096, 64], ids=["one block", "blocks"])
@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_is_no_farther_from_float64_than_plain_pytorch(name, block, monkeypatch):
    """Nor does it wait for the device, whatever is ignored; completions longer than a block are computed twice."""
    monkeypatch.setattr(head, "GPU_TOKENS", block)
    monkeypatch.setattr("ladle.kto.loss.KEPT_ELEMENTS", block * VOCABULARY)
    ours, plain = HEADS[name]
    ignores = name == "cross-entropy"
    truth = loss_and_gradients(lambda h, w, t: plain(h @ w.T, t), torch.float64, "cpu", ignores)
    theirs = loss_and_gradients(lambda h, w, t: plain(h @ w.T, t), torch.bfloat16, "cpu", ignores)

    def counted(*inputs: Tensor) -> Tensor:
        gpu.syncs.clear()
        loss = ours(*inputs)
        assert not gpu.syncs, gpu.report()
        return loss

    with PretendedGpu() as gpu:
        found = loss_and_gradients(counted, torch.bfloat16, "cuda", ignores)
    for what, exact, one, other in zip(("loss", "hidden states", "head"), truth, found, theirs, strict=True):
        assert (one - exact).norm() <= (other - exact).norm(), what
    assert (found[0] - truth[0]).abs() <= 1e-5 * truth[0].abs(), "float32 logits of products in float32"


def test_log_probabilities_of_a_reference_pass_have_float32s_accuracy():
    torch.manual_seed(0)
    hidden, weight = torch.randn(sum(SIZES), HIDDEN).bfloat16(), torch.randn(VOCABULARY, HIDDEN).bfloat16()
    target = torch.randint(VOCABULARY, (sum(SIZES),))
    with PretendedGpu():
        found = completion_logps(hidden.to("cuda"), weight.to("cuda"), target.to("cuda"), SIZES).cpu()
    logp = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(
        found.double(), torch.stack([part.sum() for part in logp.split(SIZES)]), rtol=1e-5, atol=0
    )


class CastsOfHead(TorchDispatchMode):
    """Counts the casts of a float32 head, or of a view of it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_cast = func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float32
        self.count += is_cast and args[0].numel() == VOCABULARY * HIDDEN
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", HEADS)
def test_under_autocast_the_head_is_cast_once_and_not_in_every_block(name, monkeypatch):
    monkeypatch.setattr("ladle.kto.loss.BLOCK_ELEMENTS", 16 * VOCABULARY)
    monkeypatch.setattr("ladle.kto.loss.BLOCK_TOKENS", 16)
    monkeypatch.setattr("ladle.training.cross_entropy.CHUNK_ELEMENTS", 16 * VOCABULARY)
    ours = HEADS[name][0]

    def under_autocast(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), CastsOfHead() as casts:
            loss = ours(*inputs)
        assert casts.count == 1
        return loss

    expected = loss_and_gradients(ours, torch.bfloat16, "cpu", False)
    found = loss_and_gradients(under_autocast, torch.float32, "cpu", False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
