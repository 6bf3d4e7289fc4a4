"""Decides from lengths alone which documents are trained on, which are held out, and how often each is seen.

Nothing here is stored per drawn document: the order of a source in an epoch is a keyed permutation, so a drawing is a
count, and any of its documents can be looked up by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numba import njit, uint64

from ladle.data.mixing.permutation import permutation_key, permute, permute_one
from ladle.errors import UserError


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Divide `total` units by largest remainder: the parts sum to `total`, and each is within one of its exact
    share."""
    exact = [total * share for share in shares]
    parts = [int(value) for value in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


@dataclass(frozen=True)
class Drawing:
    """The documents drawn from one source, as a sequence that can be looked up by number.

    Numbers run through whole epochs, then part of one; the last document is cut to `last_length` so that the tokens
    come out exact.
    """

    source: str
    seed: int
    purpose: str
    candidates: np.ndarray
    """(candidates,) u4 document numbers that may be drawn."""
    num_documents: int
    """Documents drawn, repeats counted."""
    num_tokens: int
    last_length: int
    """Tokens that are used of the last document."""

    def documents(self, numbers: np.ndarray) -> np.ndarray:
        """Return the document numbers (i8) at places `numbers` (u8) of the sequence."""
        size = len(self.candidates)
        found = np.empty(len(numbers), np.int64)
        epochs = numbers // np.uint64(max(size, 1))
        for epoch in np.unique(epochs):
            here = epochs == epoch
            places = permute(numbers[here] % np.uint64(size), size, self._key(int(epoch)))
            found[here] = self.candidates[places]
        return found

    def _key(self, epoch: int) -> np.uint64:
        return drawing_key(self.seed, self.source, self.purpose, epoch)


def drawing_key(seed: int, source: str, purpose: str, epoch: int) -> np.uint64:
    """Return the key of the order in which a source is drawn in an epoch."""
    return permutation_key("draw", seed, source, purpose, epoch)


def draw(
    source: str, lengths: np.ndarray, candidates: np.ndarray, budget_tokens: int, seed: int, purpose: str
) -> Drawing:
    """Draw documents in keyed order until their tokens reach the budget, starting over where the source runs out.

    Args:
        source: name of the source.
        lengths: (documents,) u4 tokens of each document.
        candidates: (candidates,) u4 numbers of the documents that may be drawn; all have tokens.
        budget_tokens: tokens to draw, exactly.
        seed: the mixture's.
        purpose: `train` or `validation`; each has orders of its own.
    """
    if budget_tokens == 0:
        return Drawing(source, seed, purpose, candidates, 0, 0, 0)
    epochs, rest = divmod(budget_tokens, int(lengths[candidates].sum(dtype=np.int64)))
    if rest == 0:  # whole epochs: the last of them ends with its own last document
        epochs, rest = epochs - 1, int(lengths[candidates].sum(dtype=np.int64))
    count, last_length = _count_until(lengths, candidates, drawing_key(seed, source, purpose, epochs), rest)
    return Drawing(
        source, seed, purpose, candidates, epochs * len(candidates) + int(count), budget_tokens, int(last_length)
    )


def draw_documents(
    source: str, lengths: np.ndarray, candidates: np.ndarray, count: int, seed: int, purpose: str
) -> Drawing:
    """Draw the first `count` documents in keyed order, whole, starting over where the source runs out."""
    if count == 0:
        return Drawing(source, seed, purpose, candidates, 0, 0, 0)
    whole_epochs, rest = divmod(count - 1, len(candidates))
    places = permute(
        np.arange(rest + 1, dtype=np.uint64), len(candidates), drawing_key(seed, source, purpose, whole_epochs)
    )
    chosen = lengths[candidates[places]]
    tokens = whole_epochs * int(lengths[candidates].sum(dtype=np.int64)) + int(chosen.sum(dtype=np.int64))
    return Drawing(source, seed, purpose, candidates, count, tokens, int(chosen[-1]))


def refuse_too_many_epochs(source: str, held: int, budget: int, max_epochs: float, unit: str) -> None:
    """Raise UserError where a source that holds so many tokens or documents would be repeated more often than it may
    be."""
    if budget > 0 and held == 0:
        raise UserError(
            f"source {source} has no documents left to train on", "add data to it, or take it out of the mixture"
        )
    if budget > held * max_epochs:
        raise UserError(
            f"source {source} holds {held:,} {unit} and its share is {budget:,}, which is {budget / held:.3g} epochs "
            f"(max_epochs={max_epochs:g})",
            "lower its ratio or the budget, add data to it, or raise its max_epochs",
        )


@njit(cache=True)
def _count_until(lengths: np.ndarray, candidates: np.ndarray, key: np.uint64, budget_tokens: int) -> tuple[int, int]:
    """Return how many documents in keyed order reach the budget, and the tokens of the last one that fit in it."""
    held = 0
    size = uint64(len(candidates))
    for number in range(len(candidates)):
        length = int(lengths[candidates[permute_one(uint64(number), size, key)]])
        if held + length >= budget_tokens:
            return number + 1, budget_tokens - held
        held += length
    return len(candidates), 0
