"""KTO's examples as token ids in flat arrays mapped from disk, and the bins that forward passes take them in.

How a row becomes token ids is in `ladle.models.chat`. A prompt is never cut: one that leaves no room for a completion
within `max_length` is left out and counted; a completion that does not fit loses its end, and is counted too.

A bin holds sequences (a prompt with a completion) of similar lengths within a budget of tokens. A padded bin is
right-padded and has no attention mask: under causal attention a real token never sees what comes after it, so padding
changes nothing, and the mask-free path is the fastest there is. A packed bin is one row without padding, its
position_ids starting anew at each sequence, with the sequences' bounds for attention that goes by them. What all
prompts begin with (worked examples, a system prompt) may stand once at the head of a packed bin, and each sequence's
rest behind it, at the positions that it would have by itself: the attention then sees both (`ladle.models.attention`).

Shape suffixes: B rows, T positions, N completion tokens of a bin.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ladle.errors import BadRow, UserError
from ladle.log import get_logger
from ladle.models.attention import document_borders, to_device
from ladle.models.chat import Encoded, count_shared, encode_rows

logger = get_logger(__name__)

Row = dict[str, Any]
ROWS_AT_ONCE = 1_000
SHARED_COST = 8
"""A token that a sequence shares takes an eighth of the memory of one of its own: copies of a layer's keys and values,
among some twenty vectors that a token leaves for the backward pass."""
ARRAYS = ("prompt_ids", "prompt_bounds", "completion_ids", "completion_bounds", "is_desirable", "prompt_of")


@dataclass(frozen=True)
class KtoExamples:
    """Labelled completions.

    Attributes:
        prompt_ids: every example's prompt, one after the other, int32.
        prompt_bounds: where each starts and the last one ends, int64, shape (N + 1,).
        completion_ids: every example's completion, in the same way.
        completion_bounds: as `prompt_bounds`.
        is_desirable: labels, bool, shape (N,).
        prompt_of: number of each example's prompt, equal for equal prompts, int64, shape (N,).
        max_length: prompt and completion together never exceed it.
        num_shared: tokens that every prompt begins with and a packed bin holds once.
    """

    prompt_ids: np.ndarray
    prompt_bounds: np.ndarray
    completion_ids: np.ndarray
    completion_bounds: np.ndarray
    is_desirable: np.ndarray
    prompt_of: np.ndarray
    max_length: int
    num_shared: int = 0

    def __len__(self) -> int:
        return len(self.is_desirable)

    def prompt(self, index: int) -> np.ndarray:
        """Return the prompt's token ids."""
        return self.prompt_ids[self.prompt_bounds[index] : self.prompt_bounds[index + 1]]

    def completion(self, index: int, prompt: int) -> np.ndarray:
        """Return the token ids of a completion, cut to what fits behind the prompt of example `prompt`."""
        start, end = self.completion_bounds[index : index + 2]
        room = self.max_length - (self.prompt_bounds[prompt + 1] - self.prompt_bounds[prompt])
        return self.completion_ids[start : min(end, start + room)]

    def lengths(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """Return how many tokens each prompt with each completion has, int64."""
        prompt_lengths = np.diff(self.prompt_bounds)[prompts]
        return np.minimum(prompt_lengths + np.diff(self.completion_bounds)[completions], self.max_length)

    def costs(self, prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """Return what each prompt with each completion takes of a bin's budget, in tokens, int64."""
        return self.lengths(prompts, completions) - self.num_shared + self.num_shared // SHARED_COST

    def sharing(self) -> KtoExamples:
        """Return the examples with what all prompts begin with in a bin once, if it is long; not their last tokens."""
        # each example's, since equal texts can have other tokens where they meet their completions
        prompts = (self.prompt(index) for index in range(len(self)))
        return replace(self, num_shared=count_shared(prompts, kept_apart=1))

    def save(self, folder: Path) -> None:
        """Write one array a file."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path, max_length: int) -> KtoExamples:
        """Map what `save` wrote."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        return cls(**arrays, max_length=max_length)


def tokenize_examples(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, max_length: int, max_bad_fraction: float = 0.01
) -> tuple[KtoExamples, dict[str, int]]:
    """Return the examples of rows of prompt, completion and label, and the counts of dropped and cut ones.

    Raises:
        UserError: too many rows that the chat template refuses, token ids of another tokenizer, or fewer than two rows
            that fit, so that no mismatched pair exists.
    """
    kept: list[Encoded] = []
    labels: list[bool] = []
    bad, long, left_out = Counter[str](), Counter[bool](), Counter[str]()
    first_bad, num_cut = "", 0
    for row, encoded in _encode(rows, tokenizer):
        if isinstance(encoded, BadRow):
            bad[encoded.problem] += 1
            first_bad = first_bad or str(row["prompt"])[:80]
        elif len(encoded.prompt) >= max_length:
            long[row["label"]] += 1
        else:
            num_cut += len(encoded.prompt) + len(encoded.completion) > max_length
            left_out.update(encoded.left_out)
            kept.append(encoded)
            labels.append(row["label"])
    num_rows = len(kept) + bad.total() + long.total()
    reasons = ", ".join(f"{count} with {reason}" for reason, count in bad.most_common())
    reasons += f"; the first begins {first_bad!r}"
    if bad.total() > max_bad_fraction * num_rows:
        problem = f"{bad.total()} of {num_rows} examples cannot be written as tokens: {reasons}"
        raise UserError(problem, "correct the data or the chat template, or raise kto.max_bad_fraction")
    if len(labels) < 2:
        seen = f"has {len(labels)} ({long.total()} prompts do not fit kto.max_length={max_length})"
        raise UserError(f"KTO needs at least two examples and {seen}", "add data, or raise kto.max_length")
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of = [numbers.setdefault(tuple(encoded.prompt_alone), len(numbers)) for encoded in kept]
    examples = KtoExamples(
        *_flat([encoded.prompt for encoded in kept]),
        *_flat([encoded.completion for encoded in kept]),
        np.array(labels),
        np.array(prompt_of, dtype=np.int64),
        max_length,
    )
    for count, what in (
        (bad.total(), f"are left out: {reasons}"),
        (long.total(), f"are left out: their prompts do not fit kto.max_length={max_length} ({long[False]} are False)"),
        (num_cut, f"lose the end of their completions to kto.max_length={max_length}"),
        *((count, f"are written without all of their {key} by the chat template") for key, count in left_out.items()),
        (_count_contradictions(examples), "are the same tokens as one with the other label"),
    ):
        if count:
            logger.warning("%d of %d examples %s", count, num_rows, what)
    counts = {"examples": len(labels), "dropped_long_prompts": long.total(), "cut_completions": num_cut}
    return examples, counts | {f"bad: {reason}": count for reason, count in sorted(bad.items())}


def _encode(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Row, Encoded | BadRow]]:
    """Yield each row with its token ids, or why it has none; ids of another tokenizer are refused at the end."""
    num_sampled = num_foreign = 0
    rows = iter(rows)
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        for row, encoded in zip(batch, encode_rows(batch, tokenizer), strict=True):
            if isinstance(encoded, BadRow):
                yield row, encoded
                continue
            said = str(tokenizer.decode(encoded.completion, skip_special_tokens=True))
            if "completion_ids" in row:
                completion = (
                    row["completion"] if isinstance(row["completion"], str) else row["completion"][-1]["content"]
                )
                num_sampled += 1
                # a stop text at the end of the ids is not part of the text
                num_foreign += not "".join(said.split()).startswith("".join(completion.split()))
            is_empty = not encoded.prompt or not said.strip()
            yield row, BadRow("a prompt or completion that is empty once it is tokens") if is_empty else encoded
    if num_foreign > num_sampled / 2:
        problem = f"{num_foreign} of {num_sampled} completions are not what their completion_ids say"
        raise UserError(problem, "use rollouts of a model with this tokenizer, or take the ids out of the rows")


def _count_contradictions(examples: KtoExamples) -> int:
    """Return how many examples have the tokens of one with the other label."""
    labels: dict[tuple[bytes, bytes], list[bool]] = defaultdict(list)
    for index, label in enumerate(examples.is_desirable.tolist()):
        labels[examples.prompt(index).tobytes(), examples.completion(index, index).tobytes()].append(label)
    return sum(len(same) for same in labels.values() if len(set(same)) > 1)


def _flat(sequences: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    bounds = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=bounds[1:])
    return np.fromiter((token for sequence in sequences for token in sequence), np.int32, int(bounds[-1])), bounds


def refuse_single_label(is_desirable: np.ndarray, allow: bool, num_long: int = 0) -> None:
    """Refuse labels that are all the same, unless that is allowed.

    Args:
        is_desirable: the labels.
        allow: whether they may be.
        num_long: examples already left out because their prompts are too long.

    Raises:
        UserError: they are.
    """
    if not allow and len(labels := np.unique(is_desirable)) == 1:
        left = f" ({num_long} whose prompts do not fit kto.max_length are left out)" if num_long else ""
        why = "z0 would grow with the reward and the policy drift as unbounded SFT"
        fix = "add examples of the other label (a `rollout:` section makes them), or set kto.allow_single_label=true"
        raise UserError(f"every example is labelled {bool(labels[0])}{left}: {why}", fix)


@dataclass(frozen=True)
class Bin:
    """One forward pass.

    Attributes:
        input_ids_BT: tokens.
        position_ids_BT: positions where rows are packed; None where they are padded.
        predicts_N: positions, in the flattened (B · T), whose hidden state predicts a completion token.
        target_N: those tokens, one completion after another.
        sizes: completion tokens of each sequence.
        borders: `document_borders` where rows are packed.
        num_shared: tokens at the head of the row that every sequence continues.
    """

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor | None
    predicts_N: torch.Tensor
    target_N: torch.Tensor
    sizes: list[int]
    borders: dict[str, Any] = field(default_factory=dict)
    num_shared: int = 0

    def to(self, device: torch.device) -> Bin:
        """Return the bin with its tensors on a device."""
        return replace(self, **to_device(vars(self) | {"borders": to_device(self.borders, device)}, device))


def plan_bins(lengths: np.ndarray, budget: int, multiple_of: int = 1, packed: bool = False) -> list[list[int]]:
    """Group sequences of similar length so that each group's padded size stays within the budget.

    Args:
        lengths: tokens of each sequence.
        budget: tokens of a bin, padding included; a longer sequence has a bin of its own.
        multiple_of: the number of bins is a multiple of this, so that each process gets as many.
        packed: no padding is added.

    Returns:
        Indices of each bin's sequences, the longest first; a bin is empty only where there are fewer sequences than
        `multiple_of`.
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


def make_bin(examples: KtoExamples, prompts: np.ndarray, completions: np.ndarray, pad_id: int, packed: bool) -> Bin:
    """Return the tensors of one bin.

    Args:
        examples: the data.
        prompts: each sequence's example whose prompt it has.
        completions: each sequence's example whose completion it has.
        pad_id: what padding is filled with.
        packed: one row without padding.
    """
    starts = [examples.prompt(index) for index in prompts]
    ends = [examples.completion(index, prompt) for index, prompt in zip(completions, prompts, strict=True)]
    sequences = [torch.from_numpy(np.concatenate(both).astype(np.int64)) for both in zip(starts, ends, strict=True)]
    sizes, shared = [len(completion) for completion in ends], examples.num_shared if packed else 0
    head, sequences = sequences[0][:shared], [sequence[shared:] for sequence in sequences]
    lengths = [len(sequence) for sequence in sequences]
    if packed:
        input_ids_BT, offsets = torch.cat([head, *sequences])[None], np.cumsum([shared, *lengths[:-1]])
    else:
        input_ids_BT = pad_sequence(sequences, batch_first=True, padding_value=pad_id)
        offsets = np.arange(len(sequences)) * input_ids_BT.shape[1]
    predicts = [
        torch.arange(offset + length - size - 1, offset + length - 1)
        for offset, length, size in zip(offsets.tolist(), lengths, sizes, strict=True)
    ]
    places = [torch.arange(shared), *(torch.arange(shared, shared + length) for length in lengths)]
    position_ids_BT = torch.cat(places)[None] if packed else None
    return Bin(
        input_ids_BT,
        position_ids_BT,
        torch.cat(predicts),
        torch.from_numpy(np.concatenate(ends).astype(np.int64)),
        sizes,
        {} if position_ids_BT is None else document_borders(position_ids_BT),
        shared,
    )
