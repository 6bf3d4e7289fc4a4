"""From the lengths of all documents to the index of rows: how many tokens of each source, which documents in which
order, and which parts of them share a row. Lengths alone decide.

The order of a source in an epoch is a keyed permutation: a Feistel network over the smallest even number of bits that
holds the size, with splitmix64's finalizer as its round function; results outside the range are permuted again until
they fall inside (cycle walking). Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002),
method 2 and 3.

Packing decides which documents are cut, and which row of L tokens each fragment goes to:

best_fit  documents longer than L give fragments of L and a rest. A row is begun with the largest fragment left, filled
          in stream order while a typical small fragment (half the median) would still fit, and closed with the largest
          that fits, again and again. Nothing is lost and no document of at most L tokens is cut. Best-fit decreasing
          (arXiv 2404.10830) also places the largest first, but uses up the small ones before the gaps that need them:
          on log-normal lengths of mean 469 it pads 0.14 %, and this 0.02 %.
wrapped   one stream of documents, cut every L tokens.
none      one document a row; what is longer than L loses its end.

Best-fit takes about a microsecond a document, which is little beside tokenizing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from ladle.artifacts.files import canonical_json
from ladle.data.config import MixConfig
from ladle.data.store import ROW, ROWS_FILE, SEGMENT, SEGMENTS_FILE
from ladle.data.tokenize import TokenizedSource
from ladle.errors import UserError
from ladle.log import progress

ROUNDS = 8
POSITIONS_AT_A_TIME = 2**16  # temporaries fit in a core's cache
ROWS_AT_A_TIME = 2**20


# The keyed order.


def permutation_key(*parts: str | int) -> np.uint64:
    """Return the key that names a permutation, such as (seed, source, epoch)."""
    return np.uint64(int.from_bytes(blake3(canonical_json(parts).encode()).digest(8), "little"))


def permute(positions: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """Return what stands at each position (u8) of the shuffled sequence 0 … size-1.

    A Feistel network over the least even number of bits that holds `size`; what lands beyond it goes through again.
    """
    # At least 4: with fewer bits some orders of a few items are up to 10 % more probable.
    half = max(4, -(-(size - 1).bit_length() // 2))
    step = partial(_permute_bits, half=half, key=key)
    if half <= 8:  # few numbers, of which most may be outside: look them up instead of permuting again and again
        step = step(np.arange(4**half, dtype=np.uint64)).__getitem__
    result = positions.astype(np.uint64)
    for start in range(0, len(result), POSITIONS_AT_A_TIME):
        part = step(result[start : start + POSITIONS_AT_A_TIME])
        while (outside := np.flatnonzero(part >= size)).size:
            part[outside] = step(part[outside])
        result[start : start + POSITIONS_AT_A_TIME] = part
    return result


def _permute_bits(values: np.ndarray, half: int, key: np.uint64) -> np.ndarray:
    """Permute the numbers of 2 half bits; the function of each round is splitmix64's finalizer (Steele, Lea and Flood,
    OOPSLA 2014)."""
    mask = 2**half - 1
    left, right = values >> half, values & mask
    for number in range(ROUNDS):
        mixed = right + np.uint64((int(key) + number * 0x9E3779B97F4A7C15) % 2**64)
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB
        left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
    return left << half | right


# Which documents.


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
class Selection:
    """What becomes of one source's documents.

    Attributes:
        source: the source.
        usable: (documents,) u4 tokens that can be used of each: its length, or at most a row's with `packing: none`.
        contaminated: numbers of the documents left out for what they share with benchmarks.
        candidates: numbers of the documents that may be trained on.
        drawn: for `train` and `validation`, the documents drawn, as `draw` returns them.
    """

    source: TokenizedSource
    usable: np.ndarray
    contaminated: np.ndarray
    candidates: np.ndarray
    drawn: dict[str, tuple[np.ndarray, np.ndarray]]


def draw(
    candidates: np.ndarray, lengths: np.ndarray, budget: int, by_documents: bool, *order: str | int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw documents in keyed order until a budget is reached, starting over in another order where they run out.

    Args:
        candidates: (candidates,) u4 numbers of the documents that may be drawn.
        lengths: (documents,) u4 tokens of each document; all candidates have some.
        budget: tokens, exactly: the last document is cut; or documents, whole.
        by_documents: whether the budget counts documents.
        order: what names the orders; each epoch has its own.

    Returns:
        (drawn,) u4 numbers, and the tokens that are used of each.
    """
    if budget == 0:
        return candidates[:0], lengths[:0]
    size = len(candidates)
    epochs = -(-budget // (size if by_documents else total_tokens(lengths, candidates)))
    keys = (permutation_key("draw", *order, epoch) for epoch in range(epochs))
    drawn = np.concatenate([candidates[permute(np.arange(size), size, key)] for key in keys])
    used = lengths[drawn]
    stops = np.cumsum(np.ones_like(used) if by_documents else used, dtype=np.int64)
    count = int(np.searchsorted(stops, budget)) + 1
    drawn, used = drawn[:count].copy(), used[:count].copy()
    used[-1] -= stops[count - 1] - budget
    return drawn, used


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
    unit = 1 if _counts_documents(config) else config.sequence_length
    validation = (config.validation.sequences if config.validation is not None else None) or 0
    budgets = [config.budget.tokens or (config.budget.sequences or 0) * unit, validation * unit]
    parts = zip(*(apportion(budget, config.shares()) for budget in budgets), strict=True)
    return [_select_one(*one, config) for one in zip(sources, contaminated, parts, strict=True)]


def _counts_documents(config: MixConfig) -> bool:
    """Tell whether budgets count rows of one document each, and not tokens."""
    return config.packing == "none" and config.budget.sequences is not None


def _select_one(
    source: TokenizedSource, contaminated: np.ndarray, budgets: tuple[int, int], config: MixConfig
) -> Selection:
    lengths, name, max_epochs = source.lengths, source.config.name, source.config.max_epochs
    budget, for_validation = budgets
    by_documents = validate_by_documents = _counts_documents(config)
    usable = np.minimum(lengths, config.sequence_length) if config.packing == "none" else lengths
    may_be_used = lengths > 0
    may_be_used[contaminated] = False

    def find_candidates() -> tuple[np.ndarray, int]:
        """Return the documents that may be used, and how many units of the budgets they hold."""
        found = np.flatnonzero(may_be_used).astype(np.uint32)
        return found, len(found) if by_documents else total_tokens(usable, found)

    candidates, held = find_candidates()
    unit = "documents" if by_documents else "tokens"
    if config.validation is not None and config.validation.fraction is not None:
        validate_by_documents = True
        for_validation = min(max(1, round(config.validation.fraction * len(candidates))), len(candidates))
    elif for_validation and for_validation >= held:
        problem = f"validation would take {for_validation:,} {unit} of source {name}, which holds {held:,}"
        raise UserError(problem, "lower validation.sequences, or add data")
    order = (config.seed, name)
    validation = draw(candidates, usable, for_validation, validate_by_documents, *order, "validation")
    may_be_used[validation[0]] = False
    candidates, held = find_candidates()
    if budget and not held:
        problem = f"source {name} has no documents left to train on"
        raise UserError(problem, "add data to it, or take it out of the mixture")
    if budget > held * max_epochs:
        share = f"its share is {budget:,}, which is {budget / held:.3g} epochs (max_epochs={max_epochs:g})"
        fix = "lower its ratio or the budget, add data to it, or raise its max_epochs"
        raise UserError(f"source {name} holds {held:,} {unit} and {share}", fix)
    train = draw(candidates, usable, budget, by_documents, *order, "train")
    drawn = {"train": train, "validation": validation}
    return Selection(source, usable, contaminated, candidates, drawn)


def total_tokens(lengths: np.ndarray, documents: np.ndarray) -> int:
    """Return the tokens of the documents with these numbers, given those of each."""
    return int(lengths[documents].sum(dtype=np.int64))


# Which rows.


def write_split(selections: Sequence[Selection], config: MixConfig, purpose: str, folder: Path) -> dict[str, Any]:
    """Pack the drawn documents of all sources, write the split's index, and return its entry in mixture.json.

    Args:
        selections: the documents of each source.
        config: the mixture.
        purpose: name of the split; keys its order.
        folder: where the index goes; must not exist.
    """
    windows = _windows(selections, config, purpose)
    return write_packed(windows, config.packing, config.sequence_length, config.seed, folder)


def write_packed(
    windows: Iterable[np.ndarray], packing: str, row_length: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Pack windows of whole documents, which are segments, write the split's index, its rows in random order by the
    seed, and return its entry in mixture.json."""
    folder.mkdir(parents=True)
    counts_of_windows = [np.empty(0, "<u4")]
    num_fragments = num_tokens = 0
    with (folder / SEGMENTS_FILE).open("wb", buffering=2**20) as stream:
        for segments, counts in pack(windows, packing, row_length):
            stream.write(segments.tobytes())
            counts_of_windows.append(counts.astype("<u4"))
            num_fragments += len(segments)
            num_tokens += int(segments["length"].sum(dtype=np.int64))
    counts = np.concatenate(counts_of_windows)
    firsts, key = np.cumsum(counts, dtype="<u8") - counts, permutation_key("rows", seed)
    with (folder / ROWS_FILE).open("wb") as stream:
        for start in range(0, len(counts), ROWS_AT_A_TIME):
            chosen = permute(np.arange(start, min(start + ROWS_AT_A_TIME, len(counts))), len(counts), key)
            rows = np.empty(len(chosen), ROW)
            rows["first"], rows["count"] = firsts[chosen], counts[chosen]
            stream.write(rows.tobytes())
    padding = len(counts) * row_length - num_tokens
    return {
        "rows": len(counts),
        "tokens": num_tokens,
        "fragments": num_fragments,
        "padding_tokens": padding,
        "padding_share": round(padding / max(len(counts) * row_length, 1), 8),
    }


def _windows(selections: Sequence[Selection], config: MixConfig, purpose: str) -> Iterator[np.ndarray]:
    """Yield whole documents, as segments, in the keyed order over all sources."""
    bounds = np.cumsum([0, *(len(one.drawn[purpose][0]) for one in selections)])
    total, key = int(bounds[-1]), permutation_key("order", config.seed, purpose)
    with progress(total=total, description=f"packing {purpose}", unit="documents") as bar:
        for start in range(0, total, config.packing_window):
            places = permute(np.arange(start, min(start + config.packing_window, total)), total, key).astype(np.int64)
            owners = np.searchsorted(bounds, places, "right") - 1
            segments = np.empty(len(places), SEGMENT)
            for owner in np.unique(owners):
                here = owners == owner
                source, (drawn, used) = selections[owner].source, selections[owner].drawn[purpose]
                numbers = places[here] - bounds[owner]
                documents = drawn[numbers]
                located = np.empty(len(documents), SEGMENT)
                located["shard"], located["offset"] = source.shards_of(documents), source.starts[documents]
                located["length"] = used[numbers]
                segments[here] = located
            yield segments
            bar.advance(len(segments))


def pack(windows: Iterable[np.ndarray], packing: str, row_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows that are complete after each window of documents, which are whole segments.

    Yields:
        (fragments,) of dtype SEGMENT, row by row, and (rows,) how many fragments each row has.
    """
    open_tokens = open_fragments = 0  # of the last row of `wrapped`, which the next window fills
    for documents in windows:
        lengths = documents["length"].astype(np.int64)
        if packing == "best_fit":
            owners, offsets, sizes = split_long(lengths, row_length)
            rows, num_rows = best_fit(sizes, row_length)
            order = np.argsort(rows, kind="stable")
            owners, offsets, sizes = owners[order], offsets[order], sizes[order]
            counts = np.bincount(rows, minlength=num_rows)
        elif packing == "wrapped":
            owners, offsets, sizes, rows = wrap(lengths, row_length, open_tokens)
            counts = np.bincount(rows)
            counts[0] += open_fragments
            open_tokens = int(sizes[rows == len(counts) - 1].sum()) + (open_tokens if len(counts) == 1 else 0)
            open_fragments, counts = int(counts[-1]), counts[:-1]
        else:
            owners, offsets, sizes = np.arange(len(lengths)), 0, np.minimum(lengths, row_length)
            counts = np.ones(len(lengths), np.int64)
        segments = documents[owners]
        segments["offset"] += np.uint64(offsets)
        segments["length"] = sizes
        yield segments, counts
    if open_fragments:
        yield np.empty(0, SEGMENT), np.array([open_fragments])


def split_long(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents into fragments of at most `row_length`.

    Args:
        lengths: (documents,) tokens, all > 0.
        row_length: L.

    Returns:
        For each fragment: its document's index, its offset in the document, its length.
    """
    counts = -(-lengths // row_length)
    owners = np.repeat(np.arange(len(lengths)), counts)
    offsets = (np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)) * row_length
    return owners, offsets, np.minimum(row_length, lengths[owners] - offsets)


def wrap(lengths: np.ndarray, row_length: int, filled: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut a stream of documents every `row_length` tokens.

    Args:
        lengths: (documents,) tokens, all > 0.
        row_length: L.
        filled: tokens that the first row holds already.

    Returns:
        For each fragment: its document's index, its offset in the document, its length, its row (0 is the one begun
        before).
    """
    stops = filled + np.cumsum(lengths)
    total = int(stops[-1]) if len(stops) else filled
    cuts = np.arange((filled // row_length + 1) * row_length, total, row_length)
    starts = np.union1d(stops - lengths, cuts)
    owners = np.searchsorted(stops, starts, "right")
    return owners, starts - (stops - lengths)[owners], np.diff(starts, append=total), starts // row_length


def best_fit(sizes: np.ndarray, row_length: int) -> tuple[np.ndarray, int]:
    """Assign fragments to rows so that hardly any room is left; ties by index.

    Args:
        sizes: (fragments,) tokens of each, from 1 to `row_length`.
        row_length: L.

    Returns:
        (fragments,) row of each, and the number of rows.
    """
    size_of: list[int] = sizes.tolist()
    count, reserve = len(size_of), int(np.sort(sizes)[len(sizes) // 2]) // 2 if len(sizes) else 0
    by_size: list[list[int]] = [[] for _ in range(row_length + 1)]  # those left, the first of each size at the end
    for index in range(count - 1, -1, -1):
        by_size[size_of[index]].append(index)
    smaller = list(range(row_length + 1))  # of each size: itself, or a smaller one where none of it is left
    rows, row, next_in_order = [-1] * count, 0, 0
    while next_in_order < count:
        room = row_length
        fragment = _largest_fitting(room, by_size, smaller, rows)
        while fragment >= 0:
            rows[fragment] = row
            room -= size_of[fragment]
            while next_in_order < count and rows[next_in_order] >= 0:
                next_in_order += 1
            if next_in_order < count and size_of[next_in_order] + reserve <= room:
                fragment = next_in_order
            else:
                fragment = _largest_fitting(room, by_size, smaller, rows)
        row += 1
    return np.array(rows, np.int64), row


def _largest_fitting(room: int, by_size: list[list[int]], smaller: list[int], rows: list[int]) -> int:
    """Return the first of the largest unplaced fragments of at most `room` tokens, or -1; forgets placed ones and
    shortens the way past sizes that ran out."""
    size = room
    while size > 0:
        if smaller[size] != size:
            smaller[size] = size = smaller[smaller[size]]
            continue
        left = by_size[size]
        while left and rows[left[-1]] >= 0:
            left.pop()
        if left:
            return left[-1]
        smaller[size] = size - 1
    return -1
