"""Divides the documents of each source between training, validation and what is left over, to the token.

Lengths alone decide. Nothing is stored per drawn document: the order of a source in an epoch is a keyed permutation, so
a drawing is a count, and any of its documents can be looked up by number.

The permutation is a Feistel network over the smallest even number of bits that holds the size, with splitmix64's
finalizer as its round function; results outside the range are permuted again until they fall inside (cycle walking).
Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), method 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from blake3 import blake3
from numba import njit, uint64

from ladle.artifacts.files import canonical_json
from ladle.data.config import MixConfig
from ladle.data.tokenize import TokenizedSource
from ladle.errors import UserError

ROUNDS = 8


def permutation_key(*parts: str | int) -> np.uint64:
    """Return the key that names a permutation, such as (seed, source, epoch)."""
    return np.uint64(int.from_bytes(blake3(canonical_json(parts).encode()).digest(8), "little"))


def permute(positions: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """Return what stands at each position (u8) of the shuffled sequence 0 … size-1."""
    return _permute_all(positions.astype(np.uint64), np.uint64(size), key)


@njit(cache=True)
def permute_one(position: np.uint64, size: np.uint64, key: np.uint64) -> np.uint64:
    """Return what stands at one position (u8) of the shuffled sequence 0 … size-1."""
    half = uint64(4)  # halves of one or two bits leave some orders of a few items up to 10 % likelier than others
    while half < uint64(32) and (uint64(1) << (uint64(2) * half)) < size:
        half += uint64(1)
    mask = (uint64(1) << half) - uint64(1)
    value = position
    while True:
        left, right = value >> half, value & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (_mix(right + key + uint64(number) * uint64(0x9E3779B97F4A7C15)) & mask)
        value = (left << half) | right
        if value < size:
            return value


@njit(cache=True)
def _permute_all(positions: np.ndarray, size: np.uint64, key: np.uint64) -> np.ndarray:
    result = np.empty_like(positions)
    for index in range(len(positions)):
        result[index] = permute_one(positions[index], size, key)
    return result


@njit(cache=True)
def _mix(value: np.uint64) -> np.uint64:
    """splitmix64's finalizer (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value ^ (value >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> uint64(27))) * uint64(0x94D049BB133111EB)
    return value ^ (value >> uint64(31))


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
    """`train` or `validation`; each has orders of its own."""
    candidates: np.ndarray
    """(candidates,) u4 document numbers that may be drawn."""
    num_documents: int = 0
    """Documents drawn, repeats counted."""
    num_tokens: int = 0
    last_length: int = 0
    """Tokens that are used of the last document."""

    def documents(self, numbers: np.ndarray) -> np.ndarray:
        """Return the document numbers (i8) at places `numbers` (u8) of the sequence."""
        size = len(self.candidates)
        found = np.empty(len(numbers), np.int64)
        epochs = numbers // np.uint64(max(size, 1))
        for epoch in np.unique(epochs):
            here = epochs == epoch
            places = permute(numbers[here] % np.uint64(size), size, self.key(int(epoch)))
            found[here] = self.candidates[places]
        return found

    def key(self, epoch: int) -> np.uint64:
        """Return the key of the order in which the source is drawn in an epoch."""
        return permutation_key("draw", self.seed, self.source, self.purpose, epoch)

    def of_tokens(self, lengths: np.ndarray, tokens: int) -> Drawing:
        """Draw documents in keyed order until their tokens reach a number, starting over where the source runs out.

        Args:
            lengths: (documents,) u4 tokens of each document; all candidates have some.
            tokens: tokens to draw, exactly.
        """
        if tokens == 0:
            return self
        an_epoch = total_tokens(lengths, self.candidates)
        epochs = (tokens - 1) // an_epoch  # whole epochs: the last of them ends with its own last document
        rest = tokens - epochs * an_epoch
        count, last_length = _count_until(lengths, self.candidates, self.key(epochs), rest)
        return replace(
            self,
            num_documents=epochs * len(self.candidates) + int(count),
            num_tokens=tokens,
            last_length=int(last_length),
        )

    def of_documents(self, lengths: np.ndarray, count: int) -> Drawing:
        """Draw the first `count` documents in keyed order, whole, starting over where the source runs out."""
        if count == 0:
            return self
        epochs, rest = divmod(count - 1, len(self.candidates))
        chosen = lengths[self.documents(np.arange(count - 1 - rest, count, dtype=np.uint64))]
        tokens = epochs * total_tokens(lengths, self.candidates) + int(chosen.sum(dtype=np.int64))
        return replace(self, num_documents=count, num_tokens=tokens, last_length=int(chosen[-1]))


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


@dataclass(frozen=True)
class Selection:
    """What becomes of one source's documents."""

    source: TokenizedSource
    usable: np.ndarray
    """(documents,) u4 tokens that can be used of each: its length, or at most a row's with `packing: none`."""
    train: Drawing
    validation: Drawing
    contaminated: np.ndarray
    """Numbers of the documents left out for what they share with benchmarks."""
    held_out: np.ndarray
    """Numbers of the documents drawn for validation."""

    def drawing(self, purpose: str) -> Drawing:
        """Return what is drawn for a split."""
        return self.train if purpose == "train" else self.validation


def select(
    sources: Sequence[TokenizedSource], contaminated: Sequence[np.ndarray], config: MixConfig
) -> list[Selection]:
    """Choose the documents of each source.

    Args:
        sources: the tokenized sources, in the order of the config's.
        contaminated: for each, the numbers of the documents to leave out.
        config: the mixture.

    Raises:
        UserError: a source that would be repeated more often than it may be, or that validation would use up.
    """
    unit = 1 if counts_documents(config) else config.sequence_length
    validation = (config.validation.sequences if config.validation is not None else None) or 0
    shares = config.shares()
    train_parts = apportion(config.budget.tokens or (config.budget.sequences or 0) * unit, shares)
    validation_parts = apportion(validation * unit, shares)
    parts = zip(sources, contaminated, train_parts, validation_parts, strict=True)
    return [_select_one(*one, config) for one in parts]


def counts_documents(config: MixConfig) -> bool:
    """Tell whether budgets count rows of one document each, and not tokens."""
    return config.packing == "none" and config.budget.sequences is not None


def _select_one(
    source: TokenizedSource, contaminated: np.ndarray, train_budget: int, validation_budget: int, config: MixConfig
) -> Selection:
    lengths = source.lengths
    usable = np.minimum(lengths, config.sequence_length) if config.packing == "none" else lengths
    may_be_used = lengths > 0
    may_be_used[contaminated] = False
    candidates = np.flatnonzero(may_be_used).astype(np.uint32)
    validation = Drawing(source.name, config.seed, "validation", candidates)
    if config.validation is not None and config.validation.fraction is not None:
        count = max(1, round(config.validation.fraction * len(candidates)))
        validation = validation.of_documents(usable, min(count, len(candidates)))
    else:
        validation = _draw(validation, usable, validation_budget, config)
    held_out = validation.documents(np.arange(validation.num_documents, dtype=np.uint64))
    may_be_used[held_out] = False
    train = Drawing(source.name, config.seed, "train", np.flatnonzero(may_be_used).astype(np.uint32))
    train = _draw(train, usable, train_budget, config, source.config.max_epochs)
    return Selection(source, usable, train, validation, contaminated, held_out)


def _draw(
    drawing: Drawing, usable: np.ndarray, budget: int, config: MixConfig, max_epochs: float | None = None
) -> Drawing:
    """Draw a budget of tokens, or of documents where rows of one document each are counted.

    Args:
        drawing: the source's, still empty.
        usable: (documents,) tokens that can be used of each.
        budget: what to draw.
        config: the mixture.
        max_epochs: passes allowed; None refuses to use the source up.
    """
    by_documents = counts_documents(config)
    unit = "documents" if by_documents else "tokens"
    held = len(drawing.candidates) if by_documents else total_tokens(usable, drawing.candidates)
    if max_epochs is None and budget and budget >= held:
        problem = f"validation would take {budget:,} {unit} of source {drawing.source}, which holds {held:,}"
        raise UserError(problem, "lower validation.sequences, or add data")
    if max_epochs is not None and budget > 0 and held == 0:
        problem = f"source {drawing.source} has no documents left to train on"
        raise UserError(problem, "add data to it, or take it out of the mixture")
    if max_epochs is not None and budget > held * max_epochs:
        raise UserError(
            f"source {drawing.source} holds {held:,} {unit} and its share is {budget:,}, which is "
            f"{budget / held:.3g} epochs (max_epochs={max_epochs:g})",
            "lower its ratio or the budget, add data to it, or raise its max_epochs",
        )
    return drawing.of_documents(usable, budget) if by_documents else drawing.of_tokens(usable, budget)


def total_tokens(lengths: np.ndarray, documents: np.ndarray) -> int:
    """Return the tokens of the documents with these numbers, given those of each."""
    return int(lengths[documents].sum(dtype=np.int64))
