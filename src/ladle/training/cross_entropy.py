"""Cross-entropy of a linear head without ever holding the full logits, its loss and its gradients in one pass.

For a chunk of tokens: logits = h Wᵀ, loss = logsumexp(logits) - logits[target], d logits = softmax(logits) - onehot,
d h = d logits W, d W += d logitsᵀ h. So the logits are computed once a step (a checkpointed head computes them twice)
and take chunk × V, not T × V. The idea is that of Liger's fused linear cross-entropy (arXiv 2410.10989); this one is
plain PyTorch, for CPU and GPU.

Shape suffixes: N labelled tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ladle.data.store import IGNORED_LABEL
from ladle.models.attention import attention_inputs
from ladle.models.probe import ORDINARY, Traits
from ladle.training.balance import SequenceAuxLoss
from ladle.training.head import add_product, in_one_dtype, multiply, room_for, tokens_at_once
from ladle.training.packed_rows import one_document_a_row, refuse_joined_documents

CHUNK_ELEMENTS = 2**25
"""Logits that a CPU holds at once: 220 tokens of a 152k vocabulary (128 MiB). Timed on two cores: chunks of 110, 256
and 512 tokens took 2.67, 2.01 and 1.90 s for 512 tokens of size 1280; 2.05, 1.30 and 1.30 s for 1024 of size 256."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor, needs_gradient: bool
    ) -> torch.Tensor:
        wide, low = torch.promote_types(hidden_ND.dtype, torch.float32), weight_VD.dtype
        is_labelled_N = None if hidden_ND.device.type == "cpu" else target_N != IGNORED_LABEL  # see `_labelled`
        if is_labelled_N is not None:
            hidden_ND, target_N = hidden_ND * is_labelled_N[:, None], target_N.clamp(min=0)
        chunk = tokens_at_once(weight_VD, max(1, CHUNK_ELEMENTS // len(weight_VD)))
        room_CV = hidden_ND.new_empty(min(chunk, len(hidden_ND)), len(weight_VD), dtype=wide)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if needs_gradient and weight_VD.requires_grad else None
        for start in range(0, len(hidden_ND), chunk):
            span = slice(start, start + chunk)
            hidden_CD = hidden_ND[span]
            logits_CV = multiply(hidden_CD, weight_VD.T, out=room_CV[: len(hidden_CD)])
            loss_C, grad_CV = _loss_and_gradient(logits_CV, target_N[span])
            total += loss_C.sum() if is_labelled_N is None else (loss_C * is_labelled_N[span]).sum()
            if grad_hidden_ND is None:
                continue
            grad_CV = room_for(grad_CV, low).copy_(grad_CV)
            torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[span])
            if grad_weight_VD is not None:
                add_product(grad_weight_VD, grad_CV.T, hidden_CD)
        if is_labelled_N is not None and grad_hidden_ND is not None:
            grad_hidden_ND.mul_(is_labelled_N[:, None])
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        ctx.weight_dtype = low
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        grad_weight = None if grad_weight_VD is None else grad_weight_VD.mul_(grad_total).to(ctx.weight_dtype)
        return grad_hidden_ND.mul_(grad_total.to(grad_hidden_ND.dtype)), grad_weight, None, None


def _loss_and_gradient(logits_CV: torch.Tensor, target_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's loss, and the gradient in the logits' own memory.

    One softmax gives both: logsumexp = the largest logit - log of its probability, which is never below 1 / V.
    """
    target_logit_C = logits_CV.gather(1, target_C[:, None])[:, 0]
    largest_C, place_C = logits_CV.max(dim=1)
    grad_CV = torch.softmax(logits_CV, dim=1, out=logits_CV)
    loss_C = largest_C - grad_CV.gather(1, place_C[:, None])[:, 0].log() - target_logit_C
    grad_CV[torch.arange(len(target_C), device=grad_CV.device), target_C] -= 1
    return loss_C, grad_CV


def linear_cross_entropy_sum(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy of `hidden_ND @ weight_VDᵀ` against the targets, a scalar, float32 or wider.

    Under autocast both are multiplied in its dtype. On a GPU targets of `IGNORED_LABEL` count nothing; a CPU is given
    none, and saves the pass over the logits that this takes.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    hidden_ND, weight_VD = in_one_dtype(hidden_ND, weight_VD)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return _LinearCrossEntropy.apply(hidden_ND, weight_VD, target_N, needs_gradient)


def use_linear_cross_entropy(
    model: PreTrainedModel, traits: Traits = ORDINARY, aux_loss: SequenceAuxLoss | None = None
) -> None:
    """Let the model's forward compute its loss this way whenever it is given labels, and add `aux_loss` to the mean.

    The forward itself is replaced, so that the loss is computed inside whatever wraps the model (DDP, DeepSpeed).
    """
    plain_forward = model.forward

    def forward(self: PreTrainedModel, **inputs: Any) -> Any:
        num_items = inputs.pop("num_items_in_batch", None)
        if inputs.get("labels") is None:
            return plain_forward(**inputs)
        how = traits if self.training else replace(traits, router_weight=0.0)  # a held-out loss has tokens alone
        loss_sum, num_labels = loss_of_rows(self, how, inputs, aux_loss)
        return CausalLMOutputWithPast(loss=loss_sum / (num_labels if num_items is None else num_items))  # type: ignore[arg-type]

    model.forward = types.MethodType(forward, model)


def loss_of_rows(
    model: PreTrainedModel, traits: Traits, rows: dict[str, Any], aux_loss: SequenceAuxLoss | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of the labelled tokens of rows, in nats, and their number.

    Losses of routers are means over tokens and count once a labelled token.

    Args:
        model: computes it.
        traits: how.
        rows: inputs of the forward pass, with labels; packed rows by positions that restart, without a mask.
        aux_loss: the sequence-wise balance loss to add.
    """
    refuse_joined_documents(rows)
    sums, counts = [], []
    for batch in one_document_a_row(rows) if traits.why_apart else [rows]:
        inputs: dict[str, Any] = attention_inputs(model, batch) | {"use_cache": False}
        target_BT = inputs.pop("labels")[:, 1:]
        is_labelled_BT = target_BT != IGNORED_LABEL
        num_labels, target_N = is_labelled_BT.sum(), _labelled(target_BT, is_labelled_BT)
        if aux_loss is not None:
            aux_loss.forget()
        if traits.why_own_logits or traits.router_weight:
            outputs = type(model).forward(model, **inputs)
            logits_NV = _labelled(outputs.logits[:, :-1].float(), is_labelled_BT)
            loss_sum = F.cross_entropy(logits_NV, target_N, ignore_index=IGNORED_LABEL, reduction="sum")
            if traits.router_weight:
                loss_sum = loss_sum + num_labels * traits.router_weight * outputs.aux_loss
        else:
            hidden_ND = _labelled(model.get_decoder()(**inputs).last_hidden_state[:, :-1], is_labelled_BT)
            weight_VD = cast(torch.nn.Linear, model.get_output_embeddings()).weight
            loss_sum = linear_cross_entropy_sum(hidden_ND, weight_VD, target_N)
        if aux_loss is not None:
            loss_sum = loss_sum + num_labels * aux_loss.take(len(target_BT))
        sums.append(loss_sum)
        counts.append(num_labels)
    return torch.stack(sums).sum(), torch.stack(counts).sum()


def _labelled(values_BT: torch.Tensor, is_labelled_BT: torch.Tensor) -> torch.Tensor:
    """Return what belongs to labelled tokens, (N, ...).

    On a GPU to all tokens, and the loss of those without a label is set to 0: a host that has to know how many are left
    waits for the device, and few have none.
    """
    return values_BT[is_labelled_BT] if values_BT.device.type == "cpu" else values_BT.flatten(0, 1)
