"""A causal language model's forward for KTO: from a bin of sequences to their loss, or to their log-probabilities.

The model's own `forward` is replaced, so that the loss is computed inside whatever wraps the model (DDP, DeepSpeed,
peft). The head is applied at the positions that predict a completion token, and nowhere else.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ladle.errors import UserError
from ladle.training.attention import DOCUMENT_SDPA, use_document_attention
from ladle.training.kto.batches import Bin
from ladle.training.kto.head import Objective, completion_logps, loss_of_completions
from ladle.training.linear_cross_entropy import why_not_linear


def use_kto_forward(model: PreTrainedModel) -> None:
    """Let `model(bin=…)` return log π of each completion, and `model(bin=…, objective=…)` loss, log π and entropy.

    Dropout is switched off, since a log-ratio is to compare two models and not two masks; attention takes the fused
    kernel where it can.

    Raises:
        UserError: an architecture whose logits are not hidden states times a matrix.
    """
    _refuse_other_heads(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    use_document_attention(model)
    plain_forward = type(model).forward

    def forward(
        self: PreTrainedModel, *args: Any, bin: Bin | None = None, objective: Objective | None = None, **kwargs: Any
    ) -> Any:
        if bin is None:
            return plain_forward(self, *args, **kwargs)
        hidden_ND, weight_VD = _hidden_states(self, bin), _head(self).weight
        if objective is None:
            return completion_logps(hidden_ND, weight_VD, bin.target_N, bin.sizes)
        return loss_of_completions(hidden_ND, weight_VD, bin.target_N, bin.sizes, objective)

    model.forward = types.MethodType(forward, model)


def _hidden_states(model: PreTrainedModel, bin: Bin) -> torch.Tensor:
    hidden_BTD = model.get_decoder()(
        input_ids=bin.input_ids_BT, position_ids=bin.position_ids_BT, use_cache=False
    ).last_hidden_state
    return hidden_BTD.flatten(0, 1)[bin.predicts_N]


def _head(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return head


def _refuse_other_heads(model: PreTrainedModel) -> None:
    if why := why_not_linear(model):
        raise UserError(
            f"KTO's one-pass head does not fit {type(model).__name__} ({why})",
            "align a model whose logits are the last hidden states times a matrix (DeepSeek-V3, Llama, Qwen, Mistral)",
        )


def is_packing(model: PreTrainedModel) -> bool:
    """Tell whether the model's attention takes packed rows without a mask of all positions by all.

    Flash attention does, and `document_sdpa` on a CPU, where a call for each sequence costs a fifth of one for all of
    them padded alike (sequences of 87 to 503 tokens).
    """
    implementation = str(getattr(model.config, "_attn_implementation", ""))
    return implementation.startswith("flash_attention") or (
        implementation == DOCUMENT_SDPA and model.device.type == "cpu"
    )
