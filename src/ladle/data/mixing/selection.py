"""Divides the documents of each source between training, validation and what is left over, to the token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ladle.data.config import MixConfig
from ladle.data.mixing.plan import Drawing, apportion, draw, draw_documents, refuse_too_many_epochs
from ladle.data.tokenizing.tokenized import TokenizedSource
from ladle.errors import UserError


@dataclass(frozen=True)
class SourceSelection:
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

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one epoch of training."""
        return _total(self.usable, self.train.candidates)

    @property
    def repeated_tokens(self) -> int:
        """Training tokens beyond the first epoch."""
        return max(0, self.train.num_tokens - self.epoch_tokens)

    @property
    def unused_tokens(self) -> int:
        """Tokens that the budget left over, and those cut off the last document held out."""
        left_over = max(0, self.epoch_tokens - self.train.num_tokens)
        return left_over + _total(self.usable, self.held_out) - self.validation.num_tokens

    @property
    def truncated_tokens(self) -> int:
        """Tokens past the end of a row, with `packing: none`, in documents for training and validation."""
        kept = np.concatenate([self.train.candidates, self.held_out])
        return _total(self.source.lengths, kept) - _total(self.usable, kept)

    @property
    def contaminated_tokens(self) -> int:
        """Tokens of the contaminated documents."""
        return _total(self.source.lengths, self.contaminated)


def select(
    sources: Sequence[TokenizedSource], contaminated: Sequence[np.ndarray], config: MixConfig
) -> list[SourceSelection]:
    """Choose the documents of each source.

    Args:
        sources: the tokenized sources, in the order of the config's.
        contaminated: for each, the numbers of the documents to leave out.
        config: the mixture.

    Raises:
        UserError: a source that would be repeated more often than it may be, or that validation would use up.
    """
    shares = config.shares()
    train = apportion(_budget(config), shares)
    validation = apportion(_validation_budget(config), shares)
    return [_select_one(*one, config) for one in zip(sources, contaminated, train, validation, strict=True)]


def counts_documents(config: MixConfig) -> bool:
    """Tell whether budgets count rows of one document each, and not tokens."""
    return config.packing == "none" and config.budget.sequences is not None


def _budget(config: MixConfig) -> int:
    """Return the tokens to train on, or the documents where rows of one document each are counted."""
    if config.budget.tokens is not None:
        return config.budget.tokens
    sequences = config.budget.sequences or 0
    return sequences if counts_documents(config) else sequences * config.sequence_length


def _validation_budget(config: MixConfig) -> int:
    sequences = (config.validation.sequences if config.validation else None) or 0
    return sequences if counts_documents(config) else sequences * config.sequence_length


def _select_one(
    source: TokenizedSource, contaminated: np.ndarray, train_budget: int, validation_budget: int, config: MixConfig
) -> SourceSelection:
    lengths = source.lengths
    usable = np.minimum(lengths, config.sequence_length) if config.packing == "none" else lengths
    may_be_used = lengths > 0
    may_be_used[contaminated] = False
    validation = _draw_validation(source.name, usable, _numbers(may_be_used), validation_budget, config)
    held_out = validation.documents(np.arange(validation.num_documents, dtype=np.uint64))
    may_be_used[held_out] = False
    train = _draw_train(source, usable, _numbers(may_be_used), train_budget, config)
    return SourceSelection(source, usable, train, validation, contaminated, held_out)


def _draw_train(
    source: TokenizedSource, usable: np.ndarray, candidates: np.ndarray, budget: int, config: MixConfig
) -> Drawing:
    if counts_documents(config):
        refuse_too_many_epochs(source.name, len(candidates), budget, source.config.max_epochs, "documents")
        return draw_documents(source.name, usable, candidates, budget, config.seed, "train")
    tokens = _total(usable, candidates)
    refuse_too_many_epochs(source.name, tokens, budget, source.config.max_epochs, "tokens")
    return draw(source.name, usable, candidates, budget, config.seed, "train")


def _draw_validation(name: str, usable: np.ndarray, candidates: np.ndarray, budget: int, config: MixConfig) -> Drawing:
    if config.validation is not None and config.validation.fraction is not None:
        count = max(1, round(config.validation.fraction * len(candidates)))
        return draw_documents(name, usable, candidates, min(count, len(candidates)), config.seed, "validation")
    by_documents = counts_documents(config)
    held = len(candidates) if by_documents else _total(usable, candidates)
    if budget >= held and budget:
        unit = "documents" if by_documents else "tokens"
        raise UserError(
            f"validation would take {budget:,} {unit} of source {name}, which holds {held:,}",
            "lower validation.sequences, or add data",
        )
    choose = draw_documents if by_documents else draw
    return choose(name, usable, candidates, budget, config.seed, "validation")


def _numbers(chosen: np.ndarray) -> np.ndarray:
    return np.flatnonzero(chosen).astype(np.uint32)


def _total(lengths: np.ndarray, documents: np.ndarray) -> int:
    return int(lengths[documents].sum(dtype=np.int64))
