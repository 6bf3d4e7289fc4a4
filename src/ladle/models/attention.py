"""Attention to packed rows, each document by itself, at the speed of PyTorch's fused kernels.

transformers keeps packed documents apart only when `position_ids` restart at each document, no `attention_mask` is
given and the cache is off; an all-ones mask silently joins them (a logit difference of 4.48 was measured).

`attn_implementation: sdpa` stands for the first of these that a model can take (`attention_choices`):

- `varlen`, on a GPU: every document by itself, by torch's flash attention for sequences of variable length. It is given
  where documents begin and end (`document_borders`), so nothing outside a document is computed and no mask is made. It
  takes bfloat16 and float16, one head size, and neither soft caps nor sinks; whether it takes a model is tried on a few
  tokens (`ladle.models.probe`).
- `document_sdpa`, on a CPU: every document by itself, by a call each, where they are long enough for that (KTO's),
  and what a row's documents have in common only once, where it says how many tokens that is (`num_shared`).
- `packed_sdpa`: documents are kept apart by a mask of all positions by all. Scores outside documents are computed and
  thrown away. On a CPU a row is therefore cut between documents into runs of at least `RUN` tokens, each attended to by
  itself under its part of the mask.

All pad values narrower than queries (DeepSeek's MLA) with zeros, which gives the same output followed by zeros, which
are cut off again: the fused kernels take one head size, and where sizes differ all scores would be written out.
transformers' flash attention takes borders too, and flex attention makes masks of its own.

Shape suffixes: B rows, T positions (for `varlen` of all rows, laid end to end), H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ladle.errors import UserError

PACKED_SDPA, DOCUMENT_SDPA, VARLEN = "packed_sdpa", "document_sdpa", "varlen"
RUN = 256
"""Least tokens of a run but the last: shorter ones cost more in calls than they save in scores."""
BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""transformers' names for where sequences begin and end in rows laid end to end, and how long the longest is."""


def attention_choices(model: PreTrainedModel, each_document: bool = False) -> list[str]:
    """Return the attentions to packed rows that a model may take, the fastest first; the last one asks for least.

    Args:
        model: on the device where it will run.
        each_document: documents are long enough for a call each on a CPU.
    """
    if (chosen := str(model.config._attn_implementation)) != "sdpa":
        return [chosen]
    if model.device.type == "cuda":
        return [VARLEN, PACKED_SDPA]
    return [DOCUMENT_SDPA, PACKED_SDPA] if each_document else [PACKED_SDPA]


def takes_borders(model: PreTrainedModel) -> bool:
    """Return whether a model's attention goes by `document_borders`."""
    return str(model.config._attn_implementation).startswith((VARLEN, "flash_attention"))


def document_borders(position_ids_BT: Tensor) -> dict[str, Any]:
    """Return where documents begin and end in packed rows laid end to end, by transformers' names (`BORDERS`).

    Args:
        position_ids_BT: 0 where a document begins; on the CPU, so that nobody waits for a device.
    """
    begins_BT = position_ids_BT == 0
    begins_BT[:, 0] = True
    ends = F.pad(begins_BT.flatten().nonzero()[:, 0], (0, 1), value=begins_BT.numel()).int()
    longest = int(ends.diff().max())
    return dict(zip(BORDERS, (ends, ends, longest, longest), strict=True))


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on a device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def attention_inputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a forward pass on packed rows as the model's attention takes them.

    Borders are left out where it does not go by them. For `varlen` an empty mask is added: transformers hands on
    one of four dimensions as it is, without asking the device whether rows are packed.
    """
    kept = {name: value for name, value in inputs.items() if takes_borders(model) or name not in BORDERS}
    if model.config._attn_implementation == VARLEN and BORDERS[0] in kept:
        kept["attention_mask"] = torch.empty(0, 0, 0, 0, dtype=torch.bool, device=model.device)
    return kept


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
    return _attend_in_runs(module, query, key, value, attention_mask, **kwargs), None


@torch.compiler.disable(reason="each number of runs would be compiled for itself")
def _attend_in_runs(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any
) -> Tensor:
    masks = mask.expand(query.shape[0], -1, -1, -1)
    rows = zip(query.split(1), key.split(1), value.split(1), masks.split(1), strict=True)
    outputs = [_attend(module, q, k, v, run_sizes(mask[0, 0]), mask, **kwargs) for q, k, v, mask in rows]
    return torch.cat(outputs)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sizes: list[int],
    mask: Tensor | None,
    num_shared: int = 0,
    **kwargs: Any,
) -> Tensor:
    """Attend to consecutive pieces of rows, each by itself, its values as wide as its queries; without a mask, all but
    the first also see `num_shared` positions that their row begins with."""
    width = value.shape[-1]
    value = F.pad(value, (0, max(0, query.shape[-1] - width)))
    outputs, start = [], 0
    for size, q, k, v in zip(sizes, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True):
        places = slice(start, start + size)
        part = mask if mask is None or len(sizes) == 1 else mask[:, :, places, places]
        if num_shared and start and mask is None:
            k, v = torch.cat([key[:, :, :num_shared], k], 2), torch.cat([value[:, :, :num_shared], v], 2)
            part = torch.ones(1, 1, size, num_shared + size, dtype=torch.bool).tril(num_shared)
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


@torch.compiler.disable(reason="each number of documents would be compiled for itself")
def document_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    num_shared: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention of each document by itself, so that no sum depends on what shares its row.

    Under a mask of padding or of a cache, as `packed_sdpa`.

    Args:
        module: the attention layer.
        query: as in `packed_sdpa`, like key and value.
        key: (batch, heads, positions, size).
        value: (batch, heads, positions, size).
        attention_mask: as in `packed_sdpa`, for sliding windows; else none where positions say where documents begin.
        position_ids: (batch or 1, positions), those of each token in its document.
        num_shared: tokens that a row begins with and all of its documents continue.
        **kwargs: as sdpa's.

    Raises:
        UserError: the model does not pass its positions on, so that documents cannot be kept apart.
    """
    has_own_mask = attention_mask is not None and (position_ids is None or query.shape[2] != key.shape[2])
    if has_own_mask:
        return packed_sdpa(module, query, key, value, attention_mask, **kwargs)
    if position_ids is None:
        problem = f"{type(module).__name__} is not given position_ids, so documents packed into a row would be joined"
        raise UserError(problem, "set attn_implementation: eager for this model")
    masks = [None] * len(query) if attention_mask is None else attention_mask.expand(len(query), -1, -1, -1).split(1)
    rows = zip(query.split(1), key.split(1), value.split(1), masks, position_ids.expand(len(query), -1), strict=True)
    outputs = []
    for q, k, v, mask, place in rows:
        sizes = document_sizes(place)
        sizes[:1] = [num_shared, sizes[0] - num_shared] if num_shared else sizes[:1]
        outputs.append(_attend(module, q, k, v, sizes, mask, num_shared, **kwargs))
    return torch.cat(outputs), None


def document_sizes(positions: Tensor) -> list[int]:
    """Return the lengths of a row's documents: one begins wherever a position does not follow the one before."""
    starts = (positions.diff() != 1).nonzero()[:, 0] + 1
    return [end - start for start, end in pairwise([0, *starts.tolist(), len(positions)])]


def mask_unless_positions_suffice(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return sdpa's mask, but none for `document_sdpa` unless there is padding, a cache or a window."""
    suffice = attention_mask is None and kwargs["q_length"] == kwargs["kv_length"] and not kwargs.get("local_size")
    return None if suffice else sdpa_mask(attention_mask=attention_mask, **kwargs)


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return the attention of each document by itself, from `torch.nn.attention.varlen`; without borders `packed_sdpa`.

    What a layer computes in float32 under autocast, or beside weights of a lower dtype, the kernel takes in that dtype.

    Args:
        module: the attention layer.
        query: as in `packed_sdpa`, like key and value.
        key: (batch, heads, positions, size).
        value: (batch, heads, positions, size).
        attention_mask: the empty one of `attention_inputs` beside borders; else as in `packed_sdpa`.
        **kwargs: as sdpa's, and `BORDERS`, on the device.

    Raises:
        UserError: the layer asks for what the kernel does not have, or is not given borders.
    """
    if attention_mask is None or attention_mask.numel():
        return packed_sdpa(module, query, key, value, attention_mask, **kwargs)
    asked = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    asked += ["dropout"] if kwargs.get("dropout") else []
    if asked or kwargs.get(BORDERS[0]) is None:
        lack = f"asks for {asked[0]}" if asked else f"is not given {BORDERS[0]}"
        problem = f"{type(module).__name__} {lack}, so that its documents cannot be attended to one by one"
        raise UserError(problem, "set attn_implementation: eager for this model")
    if (window := kwargs.get("sliding_window")) is not None:  # that of the masks, which the probe changes
        window = getattr(module.config, "sliding_window", None) or window
    kind, ends, longest = query.device.type, kwargs[BORDERS[0]], kwargs[BORDERS[2]]
    dtype: Any = query.dtype if query.dtype != torch.float32 else module.config.dtype
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    size = -(-max(query.shape[-1], value.shape[-1]) // 8) * 8  # one for all, a multiple of 8
    states = [state.transpose(1, 2).flatten(0, 1).to(dtype) for state in (query, key, value)]
    q, k, v = (state if state.shape[-1] == size else F.pad(state, (0, size - state.shape[-1])) for state in states)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if key.shape[1] < query.shape[1]:
        options["enable_gqa"] = True  # torch 2.11 has no such argument
    output_THD = cast(Tensor, varlen.varlen_attn(q, k, v, ends, ends, longest, longest, **options))
    return output_THD[..., : value.shape[-1]].unflatten(0, (len(query), -1)).to(query.dtype), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
AttentionInterface.register(DOCUMENT_SDPA, document_sdpa)
AttentionMaskInterface.register(DOCUMENT_SDPA, mask_unless_positions_suffice)
AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
