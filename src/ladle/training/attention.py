"""Packed rows: batches without a mask, and their attention at the speed of PyTorch's fused kernel.

transformers keeps packed documents apart only when `position_ids` restart at each document, no `attention_mask` is
given and the cache is off; an all-ones mask silently joins them (a logit difference of 4.48 was measured).

Where `attn_implementation` is sdpa, two things keep transformers from the fused kernel:

- DeepSeek's MLA has values narrower than its queries, and the fused kernel takes one head size; where they differ, all
  scores are written out. Values padded with zeros give the same output followed by zeros, which are cut off again
  (transformers does this for flash attention).
- A packed row's documents are kept apart by a mask of all positions by all. Its scores outside documents are computed
  and thrown away. On a CPU a row is therefore cut between documents into runs of at least `RUN` tokens, each attended
  to by itself under its part of the mask. (A GPU keeps one call per row: a call per run has not been timed there.)

`use_document_attention` goes further, for rows whose documents are long enough for a call each: no mask is made, and on
a CPU every document of a packed row is attended to by itself, causally.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ladle.data.store import IGNORED_LABEL
from ladle.errors import UserError

PACKED_SDPA, DOCUMENT_SDPA = "packed_sdpa", "document_sdpa"
RUN = 256
"""Least tokens of a run but the last: shorter ones cost more in calls than they save in scores."""


def collate_packed(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack rows of a mixture into int64 tensors of shape (rows, sequence_length)."""
    return {
        key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in ("input_ids", "position_ids", "labels")
    }


def one_document_a_row(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the labelled documents of packed rows, each a row of its own, for a model that would join them.

    They are right-padded, which no token sees before it, in batches of similar lengths that take no more places than
    the packed rows.

    Args:
        batch: `input_ids`, `position_ids` and `labels`, (rows, positions).
    """
    positions, labels = torch.stack([batch["position_ids"], batch["labels"]]).cpu()  # waits for a GPU once
    sizes = [size for row in positions for size in document_sizes(row)]
    documents = list(zip(*(batch[name].flatten().split(sizes) for name in ("input_ids", "labels")), strict=True))
    is_labelled = [bool((part[1:] != IGNORED_LABEL).any()) for part in labels.flatten().split(sizes)]
    labelled = list(compress(documents, is_labelled)) or documents[:1]
    labelled.sort(key=lambda document: -len(document[0]))
    batches = []
    while labelled:
        num_rows = batch["input_ids"].numel() // len(labelled[0][0])
        ids, labels = map(list, zip(*labelled[:num_rows], strict=True))
        padded_labels = pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL)
        batches.append({"input_ids": pad_sequence(ids, batch_first=True), "labels": padded_labels})
        labelled = labelled[num_rows:]
    return batches


def refuse_joined_documents(batch: Mapping[str, Any]) -> None:
    """Check that a batch of packed rows has no attention mask.

    Args:
        batch: what a model's forward is given; `position_ids` of shape (rows, sequence_length).

    Raises:
        UserError: its positions restart inside a row and it has a mask all the same.
    """
    positions = batch.get("position_ids")
    if batch.get("attention_mask") is None or positions is None:
        return
    if restarts := int((positions[:, 1:] == 0).sum()):
        problem = f"a packed batch ({restarts} documents begin inside its rows) has an attention_mask, which joins them"
        fix = "leave the mask out of the batch: ladle.training.attention.collate_packed makes it without one"
        raise UserError(problem, fix)


def packed_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return transformers' sdpa attention, of shape (batch, positions, heads, value size).

    Args:
        module: the attention layer.
        query: (batch, heads, positions, size).
        key: the same with as many heads or fewer.
        value: as key, of a size of its own.
        attention_mask: bool, (batch, 1, positions, positions), causal; a position that may not see the one before it
            begins a document and sees none before.
        **kwargs: as sdpa's.
    """
    if attention_mask is None or query.device.type != "cpu" or query.shape[2] <= RUN:
        return _attend(module, query, key, value, [query.shape[2]], attention_mask, **kwargs), None
    masks = attention_mask.expand(query.shape[0], -1, -1, -1)
    rows = zip(query.split(1), key.split(1), value.split(1), masks.split(1), strict=True)
    outputs = [_attend(module, q, k, v, run_sizes(mask[0, 0]), mask, **kwargs) for q, k, v, mask in rows]
    return torch.cat(outputs), None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, sizes: list[int], mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """Attend to consecutive pieces of rows, each by itself, its values as wide as its queries."""
    width = value.shape[-1]
    value = F.pad(value, (0, max(0, query.shape[-1] - width)))
    outputs, start = [], 0
    for size, q, k, v in zip(sizes, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True):
        places = slice(start, start + size)
        part = mask if mask is None or len(sizes) == 1 else mask[:, :, places, places]
        outputs.append(sdpa_attention_forward(module, q, k, v, part, **kwargs)[0])
        start += size
    return torch.cat(outputs, dim=1)[..., :width]


def run_sizes(mask_TT: Tensor) -> list[int]:
    """Return the lengths of a row's runs: whole documents, `RUN` tokens or more but for the last.

    Args:
        mask_TT: what each position sees, bool, (positions, positions).
    """
    begins = (~mask_TT.diagonal(-1)).nonzero()[:, 0] + 1
    sizes, start = [], 0
    for place in begins.tolist():
        if place - start >= RUN:
            sizes.append(place - start)
            start = place
    return [*sizes, mask_TT.shape[0] - start]


def document_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention of each document by itself, so that no sum depends on what shares its row.

    On a GPU, and under a mask of padding or of a cache, as `packed_sdpa`.

    Args:
        module: the attention layer.
        query: as in `packed_sdpa`, like key and value.
        key: (batch, heads, positions, size).
        value: (batch, heads, positions, size).
        attention_mask: as in `packed_sdpa`, for sliding windows; else none where positions say where documents begin.
        position_ids: (batch or 1, positions), 0 where a document begins.
        **kwargs: as sdpa's.

    Raises:
        UserError: the model does not pass its positions on, so that documents cannot be kept apart.
    """
    has_own_mask = attention_mask is not None and (position_ids is None or query.shape[2] != key.shape[2])
    if has_own_mask or query.device.type != "cpu":
        return packed_sdpa(module, query, key, value, attention_mask, **kwargs)
    if position_ids is None:
        problem = f"{type(module).__name__} is not given position_ids, so documents packed into a row would be joined"
        raise UserError(problem, "set attn_implementation: eager for this model")
    masks = [None] * len(query) if attention_mask is None else attention_mask.expand(len(query), -1, -1, -1).split(1)
    rows = zip(query.split(1), key.split(1), value.split(1), masks, position_ids.expand(len(query), -1), strict=True)
    outputs = [_attend(module, q, k, v, document_sizes(place), mask, **kwargs) for q, k, v, mask, place in rows]
    return torch.cat(outputs), None


def document_sizes(positions: Tensor) -> list[int]:
    """Return the lengths of a row's documents, each of which begins at position 0."""
    starts = (positions[1:] == 0).nonzero()[:, 0] + 1
    return [end - start for start, end in pairwise([0, *starts.tolist(), len(positions)])]


def mask_unless_positions_suffice(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return sdpa's mask, but none for `document_sdpa` on a CPU, unless there is padding, a cache or a window."""
    suffice = attention_mask is None and kwargs["q_length"] == kwargs["kv_length"] and not kwargs.get("local_size")
    if suffice and torch.device(kwargs["device"]).type == "cpu":
        return None
    return sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
AttentionInterface.register(DOCUMENT_SDPA, document_sdpa)
AttentionMaskInterface.register(DOCUMENT_SDPA, mask_unless_positions_suffice)


def use_fused_attention(model: PreTrainedModel) -> None:
    """Let a model that uses sdpa take packed rows fast."""
    if model.config._attn_implementation in ("sdpa", DOCUMENT_SDPA):
        model.set_attn_implementation(PACKED_SDPA)


def use_document_attention(model: PreTrainedModel) -> None:
    """Let a model that uses sdpa attend to each document of a packed row by itself, without a mask."""
    if model.config._attn_implementation in ("sdpa", PACKED_SDPA):
        model.set_attn_implementation(DOCUMENT_SDPA)
