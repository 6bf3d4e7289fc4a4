"""Sequences (a prompt with a completion) put into bins: forward passes of like lengths within a budget of tokens.

A padded bin is right-padded and has no attention mask: under causal attention a real token never sees what stands to
its right, so padding changes nothing, and the mask-free path is the fastest there is. A packed bin is one row without
padding, its position_ids starting anew at each sequence, which flash attention, and `document_sdpa` on a CPU, take as
sequence bounds.

Shape suffixes: B rows, T positions, N completion tokens of a bin, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ladle.training.kto.data import KtoExamples


@dataclass(frozen=True)
class Bin:
    """One forward pass.

    Attributes:
        input_ids_BT: tokens.
        position_ids_BT: positions where rows are packed; None where they are padded.
        predicts_N: positions, in the flattened (B · T), whose hidden state predicts a completion token.
        target_N: those tokens, one completion after another.
        sizes: completion tokens of each sequence.
        sequences: which of the step's sequences they are, in order.
    """

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor | None
    predicts_N: torch.Tensor
    target_N: torch.Tensor
    sizes: list[int]
    sequences: list[int]

    def to(self, device: torch.device) -> Bin:
        """Return the bin with its tensors on a device."""
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device),
            position_ids_BT=None if self.position_ids_BT is None else self.position_ids_BT.to(device),
            predicts_N=self.predicts_N.to(device),
            target_N=self.target_N.to(device),
        )


def plan_bins(lengths: np.ndarray, budget: int, multiple_of: int = 1, packed: bool = False) -> list[list[int]]:
    """Group sequences of like length so that each group's padded size stays within the budget.

    Args:
        lengths: tokens of each sequence.
        budget: tokens of a bin, padding included; a longer sequence has a bin of its own.
        multiple_of: the number of bins is a multiple of this, so that each process gets as many.
        packed: no padding is added.

    Returns:
        Indices of each bin's sequences, the longest first; a bin is empty only where there are fewer sequences than
        `multiple_of` asks for.
    """
    bins: list[list[int]] = []
    filled = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        added = lengths[index] if packed or not bins else lengths[bins[-1][0]]
        if bins and filled + added <= budget:
            bins[-1].append(index)
            filled += added
        else:
            bins.append([index])
            filled = lengths[index]
    while len(bins) % multiple_of:
        largest = max(range(len(bins)), key=lambda b: (len(bins[b]) > 1, sum(lengths[i] for i in bins[b])))
        half = (len(bins[largest]) + 1) // 2
        bins[largest : largest + 1] = [bins[largest][:half], bins[largest][half:]]
    return bins


def make_bin(
    examples: KtoExamples, pairs: Sequence[tuple[int, int]], sequences: Sequence[int], pad_id: int, packed: bool
) -> Bin:
    """Return the tensors of one bin.

    Args:
        examples: the data.
        pairs: (example whose prompt, example whose completion) of each of the step's sequences.
        sequences: indices into `pairs` of this bin's.
        pad_id: what padding is filled with.
        packed: one row without padding.
    """
    prompts = [examples.prompt(pairs[index][0]) for index in sequences]
    completions = [examples.completion(pairs[index][1], pairs[index][0]) for index in sequences]
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    width = sum(lengths) if packed else max(lengths)
    input_ids = np.full((1 if packed else len(lengths), width), pad_id, dtype=np.int64)
    flat = input_ids.reshape(-1)
    predicts = []
    start = 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start = start if packed else row * width
        middle, end = start + len(prompt), start + len(prompt) + len(completion)
        flat[start:middle], flat[middle:end] = prompt, completion
        predicts.append(np.arange(middle - 1, end - 1))
        start = end
    positions = np.concatenate([np.arange(length) for length in lengths])[None] if packed else None
    return Bin(
        torch.from_numpy(input_ids),
        None if positions is None else torch.from_numpy(positions),
        torch.from_numpy(np.concatenate(predicts)),
        torch.from_numpy(np.concatenate(completions).astype(np.int64)),
        [len(completion) for completion in completions],
        list(sequences),
    )
