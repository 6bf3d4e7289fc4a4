"""The KTO loss (arXiv 2402.01306, eq. 7 and 8), its gradients in one pass over the logits, and a model's forward.

    r(x, y)  = log π(y|x) - log π_ref(y|x)
    z0       = max(0, mean over mismatched pairs of r(x, y')), no gradient
    desirable:    λ_D (1 - σ(β (r - z0)))
    undesirable:  λ_U (1 - σ(β (z0 - r)))

APO-zero unpaired (arXiv 2408.06266, eq. 7) is the same with z0 = 0, since σ(-x) = 1 - σ(x).

The loss of a completion depends on its tokens through one number, log π(y|x) = Σ_t log p_t, so with d = dL/d log π(y|x)

    d logits_t = d (onehot(target_t) - softmax_t)
    d h_t      = d logits_t W            d W += d logits_tᵀ h_t

and once a completion's logits are there, everything else is: the loss, both gradients and the entropy
(Σ_v p_v logit_v = h · Σ_v p_v W_v, whose sum the gradient needs anyway). Logits live for a block of completions at a
time; only a completion longer than a block is computed twice.

Plain PyTorch, for CPU and GPU; sums of a completion run over its own slice, so that GPUs repeat them bit for bit.

Shape suffixes: B completions, G groups that share a reference point, N completion tokens, C tokens of a block, D hidden
size, V vocabulary; b completions of a block.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ladle.errors import UserError
from ladle.kto.data import Bin
from ladle.models.attention import DOCUMENT_SDPA, attention_choices, attention_inputs, takes_borders
from ladle.models.load import checkpoint_activations
from ladle.models.probe import ORDINARY, Traits, hidden_states, is_deterministic, probe
from ladle.training.head import add_product, in_one_dtype, multiply, room_for, tokens_at_once

BLOCK_ELEMENTS, BLOCK_TOKENS = 2**21, 256
"""Logits of a block on a CPU, 8 MiB in float32, unless that were fewer tokens than a matrix product needs to be
efficient: 256, or the hidden size where that is smaller, so that a small model's logits do not outgrow its head."""
KEPT_ELEMENTS = 2**26
"""Logits that are kept for one long completion, 256 MiB in float32 (440 tokens of a 152k vocabulary), so that they need
not be computed again for its gradient."""

Objective = Callable[[torch.Tensor, slice], torch.Tensor]
"""From log-probabilities of the completions in a slice, shape (b,), to the loss that each adds, shape (b,)."""


@dataclass(frozen=True)
class KtoWeights:
    """β, λ_D and λ_U."""

    beta: float
    desirable: float
    undesirable: float


def kto_loss(
    ratio_B: torch.Tensor, is_desirable_B: torch.Tensor, z0_B: torch.Tensor, weights: KtoWeights
) -> torch.Tensor:
    """Return the loss of each example, shape (B,).

    Args:
        ratio_B: log π - log π_ref of each completion, summed over its tokens, in nats.
        is_desirable_B: bool labels.
        z0_B: reference point of each example (or one for all), at least 0, detached.
        weights: β, λ_D, λ_U.
    """
    margin_B = torch.where(is_desirable_B, ratio_B - z0_B, z0_B - ratio_B)
    weight_B = torch.where(is_desirable_B, weights.desirable, weights.undesirable)
    return weight_B * (1 - F.sigmoid(weights.beta * margin_B))


def reference_points(kl_sum_G: torch.Tensor, count_G: torch.Tensor) -> torch.Tensor:
    """Return z0 of each group from the sum and number of its mismatched log-ratios; 0 where there are none."""
    return (kl_sum_G / count_G.clamp(min=1)).clamp(min=0)


def use_kto_forward(model: PreTrainedModel, traits: Traits = ORDINARY) -> bool:
    """Let `model(bin=…)` return log π of each completion, and `model(bin=…, objective=…)` loss, log π and entropy.

    The model's own forward is replaced, so that the loss is computed inside whatever wraps the model (DDP, DeepSpeed,
    peft); the head is applied at the positions that predict a completion token, and nowhere else. Attention takes the
    fused kernel where it can.

    Args:
        model: on the device where it will run.
        traits: those of `prepare_policy`, which chose its attention.

    Returns:
        Whether to pack bins: where attention takes packed rows without a mask of all positions by all. Attention by
        borders does, and `document_sdpa` on a CPU, where a call for each sequence costs a fifth of one for all of them
        padded (sequences of 87 to 503 tokens).
    """
    if traits is ORDINARY:
        model.set_attn_implementation(attention_choices(model, each_document=True)[0])
    plain_forward, curve = type(model).forward, find_curve(model) if traits.why_own_logits else None

    def forward(
        self: PreTrainedModel, *args: Any, bin: Bin | None = None, objective: Objective | None = None, **kwargs: Any
    ) -> Any:
        if bin is None:
            return plain_forward(self, *args, **kwargs)
        rows = {"input_ids": bin.input_ids_BT, "position_ids": bin.position_ids_BT, **bin.borders}
        rows |= {"num_shared": bin.num_shared} if bin.num_shared else {}
        outputs = self.get_decoder()(**attention_inputs(self, rows), use_cache=False)
        hidden_ND = outputs.last_hidden_state.flatten(0, 1)[bin.predicts_N]
        del outputs  # memory of all positions, beside the head's own
        head = cast(nn.Linear, self.get_output_embeddings())
        if curve is not None:
            found = loss_by_autograd(hidden_ND, head, curve, bin.target_N, bin.sizes, objective)
            return found[1] if objective is None else found
        if objective is None:
            return completion_logps(hidden_ND, head.weight, bin.target_N, bin.sizes)
        return loss_of_completions(hidden_ND, head.weight, bin.target_N, bin.sizes, objective)

    model.forward = types.MethodType(forward, model)
    return traits.why_apart is None and (takes_borders(model) or model.config._attn_implementation == DOCUMENT_SDPA)


class Curve(NamedTuple):
    """How a model's logits follow from its head's output x: cap · tanh(scale · x / cap), without a cap scale · x."""

    scale: float
    cap: float | None

    def __call__(self, x_CV: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32."""
        x_CV = x_CV.float() * self.scale
        return x_CV if self.cap is None else self.cap * torch.tanh(x_CV / self.cap)


@torch.no_grad()
def find_curve(model: PreTrainedModel) -> Curve | None:
    """Return the curve that a config names, if the model's own logits are on it, head outputs being made large."""
    head, fields = model.get_output_embeddings(), model.config.to_dict()
    scale = fields.get("logit_scale") or 1 / (fields.get("logits_scaling") or 1)
    curve = Curve(scale, fields.get("final_logit_softcapping") or fields.get("logits_soft_cap"))
    if not isinstance(head, nn.Linear):
        return None
    ids = torch.arange(8, device=model.device)[None]
    with head.register_forward_hook(lambda module, inputs, output: 100 * output / output.abs().max()):
        expected = curve(head(hidden_states(model, input_ids=ids)))
        found = type(model).forward(model, input_ids=ids, use_cache=False).logits.float()
    tolerance = 1e-4 if model.dtype == torch.float32 else 1e-2
    return curve if torch.allclose(found, expected, rtol=tolerance, atol=tolerance) else None


def prepare_policy(model: PreTrainedModel, checkpointing: bool = False, autocast: str | None = None) -> Traits:
    """Put a policy in the mode and under the attention for KTO, and return what was found of it.

    Args:
        model: on the device where it will run.
        checkpointing: whether training computes activations again.
        autocast: as in `probe`.

    Raises:
        UserError: its logits are not those of a head and a `Curve`, it has a loss of its own, or equal passes differ.
    """
    traits = probe(model, num_rows=1, autocast=autocast, each_document=True)
    name = type(model).__name__
    if traits.why_own_logits and find_curve(model) is None:
        fix = "align a model whose logits are the last hidden states times a matrix (DeepSeek-V3, Llama, Qwen, Mistral)"
        raise UserError(f"KTO's one-pass head does not fit {name}: {traits.why_own_logits}", fix)
    if traits.router_weight:
        problem = f"the config of {name} adds the routers' auxiliary loss (output_router_logits), and KTO has none"
        raise UserError(problem, "set output_router_logits to false in its config.json")
    if checkpointing:
        checkpoint_activations(model)
    switch_randomness_off(model)
    if not is_deterministic(model):
        problem = f"two equal passes of {name} differ, and KTO's log-ratios would hold that noise"
        raise UserError(problem, "set dropout and noise to 0 in its config.json, or leave gradient_checkpointing out")
    return traits


def switch_randomness_off(model: nn.Module) -> None:
    """Put a policy in the mode without dropout, router noise and the like: a log-ratio compares two models, not two
    draws.

    That is evaluation's; only what computes its activations again (gradient checkpointing) does so in training's.
    """
    model.eval()
    for module in model.modules():
        module.training = bool(getattr(module, "gradient_checkpointing", False))


@torch.no_grad()
def completion_logps(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor, sizes: Sequence[int]):
    """Return log π of each completion, float32, shape (B,), without gradient.

    Args:
        hidden_ND: hidden states that predict the completions' tokens, one completion after another.
        weight_VD: the head.
        target_N: the tokens.
        sizes: tokens of each completion, B of them, summing to N.
    """
    block = tokens_of_block(weight_VD)
    hidden_ND, weight_VD = in_one_dtype(hidden_ND, weight_VD)
    room_CV = _room(min(block, len(hidden_ND)), weight_VD)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logps = [
            _softmax_terms(hidden_CD, weight_VD, target_C, room_CV).logp_C
            for hidden_CD, target_C in zip(hidden_ND.split(block), target_N.split(block), strict=True)
        ]
    return _sum_each(torch.cat(logps), sizes)


def loss_of_completions(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor, sizes: Sequence[int], objective: Objective
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the summed loss (with gradient), each completion's log π and its summed entropy (without).

    Args:
        hidden_ND: as in `completion_logps`.
        weight_VD: the head.
        target_N: the tokens.
        sizes: tokens of each completion.
        objective: each completion's loss as a function of its log π.
    """
    needs_gradient = torch.is_grad_enabled()
    hidden_ND, weight_VD = in_one_dtype(hidden_ND, weight_VD)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return _LossOfCompletions.apply(hidden_ND, weight_VD, target_N, sizes, objective, needs_gradient)


def loss_by_autograd(
    hidden_ND: torch.Tensor,
    head: nn.Module,
    curve: Curve,
    target_N: torch.Tensor,
    sizes: Sequence[int],
    objective: Objective | None,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return what `loss_of_completions` does for a head with a bias and logits on a curve, a block of tokens at a time.

    A block's logits are computed again for its gradient, when up to eight tensors of their size are alive.
    """

    def terms(hidden_CD: torch.Tensor, target_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logp_CV = curve(head(hidden_CD)).log_softmax(dim=1)
        return logp_CV.gather(1, target_C[:, None])[:, 0], -(logp_CV.exp() * logp_CV).sum(dim=1).detach()

    block = tokens_of_block(cast(nn.Linear, head).weight, copies=8)
    blocks_of_both = zip(hidden_ND.split(block), target_N.split(block), strict=True)
    found = [checkpoint(terms, *one, use_reentrant=False) for one in blocks_of_both]
    logp_B, entropy_B = (_sum_each(torch.cat(term), sizes) for term in zip(*found, strict=True))
    loss = None if objective is None else objective(logp_B, slice(None)).sum()
    return loss, logp_B.detach(), entropy_B


class _Softmax(NamedTuple):
    """What one block's logits give: unnormalised probabilities, their sums, and each target's log-probability."""

    exp_CV: torch.Tensor
    sum_C: torch.Tensor
    target_logit_C: torch.Tensor
    lse_C: torch.Tensor

    @property
    def logp_C(self) -> torch.Tensor:
        return self.target_logit_C - self.lse_C


def _room(num_tokens: int, weight_VD: torch.Tensor) -> torch.Tensor:
    """Return memory for the logits of one block after another, float32: taking it anew costs a CPU as much as exp."""
    return torch.empty(num_tokens, weight_VD.shape[0], dtype=torch.float32, device=weight_VD.device)


def _softmax_terms(
    hidden_CD: torch.Tensor, weight_VD: torch.Tensor, target_C: torch.Tensor, room_CV: torch.Tensor
) -> _Softmax:
    logits_CV = multiply(hidden_CD, weight_VD.T, out=room_CV[: len(hidden_CD)])
    target_logit_C = logits_CV.gather(1, target_C[:, None])[:, 0]
    max_C = logits_CV.amax(dim=1)
    exp_CV = logits_CV.sub_(max_C[:, None]).exp_()
    sum_C = exp_CV.sum(dim=1)
    return _Softmax(exp_CV, sum_C, target_logit_C, max_C + sum_C.log())


class _LossOfCompletions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND, weight_VD, target_N, sizes, objective, needs_gradient):  # noqa: ANN001, ANN205
        found = blocks(sizes, tokens_of_block(weight_VD))
        pass_ = _OnePass(hidden_ND, weight_VD, target_N, needs_gradient, max(t.stop - t.start for _, t, _ in found))
        losses, logps, entropies = [], [], []
        for completions, tokens, block_sizes in found:
            loss_b, logp_b, entropy_b = pass_.run(
                tokens, block_sizes, lambda logp_b, which=completions: objective(logp_b, which)
            )
            losses.append(loss_b)
            logps.append(logp_b)
            entropies.append(entropy_b)
        ctx.grads, ctx.weight_dtype = (pass_.grad_hidden_ND, pass_.grad_weight_VD), weight_VD.dtype
        logp_B, entropy_B = torch.cat(logps), torch.cat(entropies)
        ctx.mark_non_differentiable(logp_B, entropy_B)
        return torch.cat(losses).sum(), logp_B, entropy_B

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_hidden_ND, grad_weight_VD), ctx.grads = ctx.grads, None  # scaled in place, so there is no second backward
        scale = grads[0]
        grad_weight = None if grad_weight_VD is None else grad_weight_VD.mul_(scale).to(ctx.weight_dtype)
        return grad_hidden_ND.mul_(scale), grad_weight, None, None, None, None


class _OnePass:
    """Goes over blocks of completions, filling the gradients of the hidden states and of the head."""

    def __init__(
        self,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        target_N: torch.Tensor,
        needs_gradient: bool,
        largest_block: int,
    ) -> None:
        self.hidden_ND, self.weight_VD, self.target_N = hidden_ND, weight_VD, target_N
        self.block = max(tokens_of_block(weight_VD), KEPT_ELEMENTS // weight_VD.shape[0])
        self.room_CV = _room(min(self.block, largest_block), weight_VD)
        self.grad_hidden_ND = torch.empty_like(hidden_ND)
        trains_head = needs_gradient and weight_VD.requires_grad
        self.grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if trains_head else None

    def run(
        self, tokens: slice, sizes: Sequence[int], objective: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return loss, log π and entropy of the completions whose tokens are `tokens`, each of shape (b,)."""
        starts = range(tokens.start, tokens.stop, self.block)
        spans = [slice(start, min(start + self.block, tokens.stop)) for start in starts]
        kept = self._terms(spans[0]) if len(spans) == 1 else None
        logp_C = kept.logp_C if kept is not None else torch.cat([self._terms(span).logp_C for span in spans])
        logp_b = _sum_each(logp_C, sizes)
        loss_b, slope_b = _value_and_slope(objective, logp_b)
        size_b = torch.tensor(sizes).to(slope_b.device, non_blocking=True)
        slope_C = slope_b.repeat_interleave(size_b, output_size=sum(sizes))
        entropies = [
            self._add_gradients(span, self._terms(span) if kept is None else kept, slope_span)
            for span, slope_span in zip(spans, slope_C.split(self.block), strict=True)
        ]
        return loss_b, logp_b, _sum_each(torch.cat(entropies), sizes)

    def _terms(self, span: slice) -> _Softmax:
        return _softmax_terms(self.hidden_ND[span], self.weight_VD, self.target_N[span], self.room_CV)

    def _add_gradients(self, span: slice, term: _Softmax, slope_C: torch.Tensor) -> torch.Tensor:
        """Add a block's gradients, consuming its softmax, and return its tokens' entropies, shape (C,)."""
        hidden_CD, target_C = self.hidden_ND[span].float(), self.target_N[span]
        rows_C = torch.arange(len(target_C), device=target_C.device)
        minus_CV = term.exp_CV
        minus_CV[rows_C, target_C] -= term.sum_C  # softmax - onehot, times sum_C
        low_CV = room_for(minus_CV, self.weight_VD.dtype).copy_(minus_CV)
        pull_CD = multiply(low_CV, self.weight_VD, out=torch.empty_like(hidden_CD))
        expected_logit_C = (hidden_CD * pull_CD).sum(1) / term.sum_C + term.target_logit_C
        factor_C1 = (-slope_C / term.sum_C)[:, None]
        self.grad_hidden_ND[span] = (pull_CD * factor_C1).to(self.grad_hidden_ND.dtype)
        if self.grad_weight_VD is not None:
            left_CV = low_CV if low_CV.is_cuda else minus_CV  # a CPU's product of narrow operands would be rounded
            add_product(self.grad_weight_VD, left_CV.T, (hidden_CD * factor_C1).to(left_CV.dtype))
        return term.lse_C - expected_logit_C


def _value_and_slope(
    objective: Callable[[torch.Tensor], torch.Tensor], logp_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        at_b = logp_b.detach().requires_grad_()
        loss_b = objective(at_b)
        (slope_b,) = torch.autograd.grad(loss_b.sum(), at_b)
    return loss_b.detach(), slope_b


def tokens_of_block(weight_VD: torch.Tensor, copies: int = 1) -> int:
    """Return how many tokens' logits are computed at once, `copies` of them alive beside each other."""
    vocab_size, hidden_size = weight_VD.shape
    return tokens_at_once(weight_VD, max(BLOCK_ELEMENTS // vocab_size, min(BLOCK_TOKENS, hidden_size)), copies)


def blocks(sizes: Sequence[int], capacity: int) -> list[tuple[slice, slice, list[int]]]:
    """Group consecutive completions into blocks of at most `capacity` tokens; a longer one is a block of its own.

    Returns:
        For each block its completions, its tokens, and the completions' sizes.
    """
    found, first, start, filled = [], 0, 0, 0
    for index, size in enumerate(sizes):
        if filled and filled + size > capacity:
            found.append((slice(first, index), slice(start, start + filled), list(sizes[first:index])))
            first, start, filled = index, start + filled, 0
        filled += size
    found.append((slice(first, len(sizes)), slice(start, start + filled), list(sizes[first:])))
    return found


def _sum_each(value_N: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    return torch.stack([part.sum() for part in value_N.split(list(sizes))])
