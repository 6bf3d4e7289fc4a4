"""Cross-entropy of a linear head without ever holding the full logits, its loss and its gradients in one pass.

For a chunk of tokens: logits = h Wᵀ, loss = logsumexp(logits) - logits[target], d logits = softmax(logits) - onehot,
d h = d logits W, d W += d logitsᵀ h. So the logits are computed once a step (a checkpointed head computes them twice)
and take chunk × V, not T × V. The idea is that of Liger's fused linear cross-entropy (arXiv 2410.10989); this one is
plain PyTorch, for CPU and GPU.

Shape suffixes: N labelled tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import types
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ladle.data.store import IGNORED_LABEL
from ladle.log import get_logger
from ladle.training.attention import refuse_joined_documents
from ladle.training.balance import SequenceAuxLoss

logger = get_logger(__name__)

RESCALED_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Settings by which some architectures change logits after the head."""
CHUNK_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
"""Logits held at once: 220 tokens of a 152k vocabulary (128 MiB) on a CPU. Timed there on two cores: chunks of 110, 256
and 512 tokens took 2.67, 2.01 and 1.90 s for 512 tokens of size 1280, and 2.05, 1.30 and 1.30 s for 1024 of size 256.
The GPU's is estimated, not timed: a chunk's products should outweigh reading and writing the weight's gradient."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor, needs_gradient: bool
    ) -> torch.Tensor:
        chunk = max(1, CHUNK_ELEMENTS.get(hidden_ND.device.type, CHUNK_ELEMENTS["cpu"]) // weight_VD.shape[0])
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if needs_gradient and weight_VD.requires_grad else None
        for start in range(0, hidden_ND.shape[0], chunk):
            hidden_CD, target_C = hidden_ND[start : start + chunk], target_N[start : start + chunk]
            logits_CV = (hidden_CD @ weight_VD.T).to(wide)
            loss_C, grad_CV = _loss_and_gradient(logits_CV, target_C)
            total += loss_C.sum()
            if grad_hidden_ND is None:
                continue
            grad_CV = grad_CV.to(weight_VD.dtype)
            torch.mm(grad_CV, weight_VD, out=grad_hidden_ND[start : start + chunk])
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_CV, hidden_CD)
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


def _add_product(grad_weight_VD: torch.Tensor, grad_CV: torch.Tensor, hidden_CD: torch.Tensor) -> None:
    """Add d logitsᵀ h to the float32 sum over chunks; a low dtype's product is rounded once a chunk."""
    if grad_CV.dtype == grad_weight_VD.dtype:
        grad_weight_VD.addmm_(grad_CV.T, hidden_CD)
    else:
        grad_weight_VD += grad_CV.T @ hidden_CD


def linear_cross_entropy_sum(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy of `hidden_ND @ weight_VDᵀ` against the targets, a scalar, float32 or wider.

    Under autocast both are multiplied in its dtype.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden_ND, weight_VD, target_N, needs_gradient)


def why_not_linear(model: PreTrainedModel) -> str | None:
    """Return why a model's logits are not its last hidden states times a matrix, None if they are."""
    config = model.config.get_text_config()
    rescaled = [name for name in RESCALED_LOGITS if getattr(config, name, None) not in (None, 1, 1.0)]
    if rescaled:
        return f"its config has {rescaled[0]}"
    return "its output head has a bias" if getattr(model.get_output_embeddings(), "bias", None) is not None else None


def use_linear_cross_entropy(model: PreTrainedModel, aux_loss: SequenceAuxLoss | None = None) -> None:
    """Let the model's forward compute its loss this way whenever it is given labels, and add `aux_loss` to the mean.

    The forward itself is replaced, so that the loss is computed inside whatever wraps the model (DDP, DeepSpeed). A
    model whose logits are not hidden states times a matrix computes all of them itself, with a warning.
    """
    if why := why_not_linear(model):
        logger.warning(
            "the one-pass head does not fit %s (%s): its own writes out all logits", type(model).__name__, why
        )
    plain_forward = model.forward

    def forward(self: PreTrainedModel, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if labels is None:
            return plain_forward(*args, **kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        if aux_loss is not None:
            aux_loss.forget()
        loss_sum, num_labels = _loss_sum(self, labels, *args, **kwargs)
        if aux_loss is not None:
            loss_sum = loss_sum + num_labels * aux_loss.take(labels.shape[0])
        return CausalLMOutputWithPast(loss=loss_sum / (num_labels if num_items is None else num_items))  # type: ignore[arg-type]

    model.forward = types.MethodType(forward, model)


def _loss_sum(
    model: PreTrainedModel, labels_BT: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    refuse_joined_documents(kwargs)
    kwargs |= {"use_cache": False}
    target_BT = labels_BT[:, 1:]
    is_labelled_BT = target_BT != IGNORED_LABEL
    if why_not_linear(model):
        logits_BTV = type(model).forward(model, *args, **kwargs).logits[:, :-1].float()
        loss_sum = F.cross_entropy(logits_BTV[is_labelled_BT], target_BT[is_labelled_BT], reduction="sum")
        return loss_sum, is_labelled_BT.sum()
    hidden_BTD = model.get_decoder()(*args, **kwargs).last_hidden_state
    weight_VD = cast(torch.nn.Linear, model.get_output_embeddings()).weight
    loss_sum = linear_cross_entropy_sum(hidden_BTD[:, :-1][is_labelled_BT], weight_VD, target_BT[is_labelled_BT])
    return loss_sum, is_labelled_BT.sum()


def labelled_loss_sum(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Return the summed loss of a packed batch's labelled tokens in nats, and their number."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    loss_sum, num_labels = _loss_sum(model, inputs.pop("labels"), **inputs)
    return loss_sum.item(), int(num_labels.item())
