"""Packed rows as batches: stacked, or each document a row of its own; never with a mask that would join documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ladle.data.store import IGNORED_LABEL
from ladle.errors import UserError
from ladle.models.attention import document_borders, document_sizes


def collate_packed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack rows of a mixture into int64 tensors of shape (rows, sequence_length), and add `document_borders`."""
    names = ("input_ids", "position_ids", "labels")
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in names}
    return batch | document_borders(batch["position_ids"])


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
        fix = "leave the mask out of the batch: ladle.training.packed_rows.collate_packed makes it without one"
        raise UserError(problem, fix)
