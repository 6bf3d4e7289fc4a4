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
from ladle.models.probe import ORDINARY, Traits
from ladle.training.attention import one_document_a_row, refuse_joined_documents
from ladle.training.balance import SequenceAuxLoss

CHUNK_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
"""Logits held at once: 220 tokens of a 152k vocabulary (128 MiB) on a CPU. Timed there on two cores: chunks of 110, 256
and 512 tokens took 2.67, 2.01 and 1.90 s for 512 tokens of size 1280, and 2.05, 1.30 and 1.30 s for 1024 of size 256.
The GPU's is estimated, not timed: a chunk's products should outweigh reading and writing the weight's gradient."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor, needs_gradient: bool
    ) -> torch.Tensor:
        some_are_ignored = hidden_ND.device.type != "cpu"  # as `_labelled` leaves them
        chunk = max(1, CHUNK_ELEMENTS.get(hidden_ND.device.type, CHUNK_ELEMENTS["cpu"]) // weight_VD.shape[0])
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if needs_gradient and weight_VD.requires_grad else None
        for start in range(0, hidden_ND.shape[0], chunk):
            hidden_CD, target_C = hidden_ND[start : start + chunk], target_N[start : start + chunk]
            logits_CV = (hidden_CD @ weight_VD.T).to(wide)
            loss_C, grad_CV = _loss_and_gradient(logits_CV, target_C.clamp(min=0) if some_are_ignored else target_C)
            if some_are_ignored:
                is_labelled_C = target_C != IGNORED_LABEL
                loss_C, grad_CV = loss_C * is_labelled_C, grad_CV.mul_(is_labelled_C[:, None])
            total += loss_C.sum()
            if grad_hidden_ND is None:
                continue
            grad_CV = grad_CV.to(weight_VD.dtype)
            torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[start : start + chunk])
            if grad_weight_VD is None:
                continue
            if grad_CV.dtype == grad_weight_VD.dtype:
                grad_weight_VD.addmm_(grad_CV.T, hidden_CD)
            else:
                grad_weight_VD += (
                    grad_CV.T @ hidden_CD
                )  # summed in float32; a low dtype's product is rounded once a chunk
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
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
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    with torch.autocast(device, enabled=False):
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
        inputs: dict[str, Any] = batch | {"use_cache": False}
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
