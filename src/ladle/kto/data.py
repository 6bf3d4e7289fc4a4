"""KTO's examples as token ids in flat arrays mapped from disk, and the bins that forward passes take them in.

A text prompt is encoded with the tokenizer's own start token and a text completion ends with eos; a conversation goes
through the chat template. A prompt is never cut: one that leaves no room for a completion within `max_length` is left
out and counted; a completion that does not fit loses its end, and is counted too.

A bin holds sequences (a prompt with a completion) of similar lengths within a budget of tokens. A padded bin is
right-padded and has no attention mask: under causal attention a real token never sees what comes after it, so padding
changes nothing, and the mask-free path is the fastest there is. A packed bin is one row without padding, its
position_ids starting anew at each sequence; flash attention, and `document_sdpa` on a CPU, take those as sequence
bounds.

Shape suffixes: B rows, T positions, N completion tokens of a bin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ladle.errors import UserError
from ladle.models.tokenizer import ensure_chat_template

Row = dict[str, Any]
ROWS_AT_ONCE = 1_000
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
    """

    prompt_ids: np.ndarray
    prompt_bounds: np.ndarray
    completion_ids: np.ndarray
    completion_bounds: np.ndarray
    is_desirable: np.ndarray
    prompt_of: np.ndarray
    max_length: int

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
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[KtoExamples, dict[str, int]]:
    """Return the examples of rows of prompt, completion and label, and the counts of dropped and cut ones.

    Raises:
        UserError: fewer than two rows fit, so that no mismatched pair exists.
    """
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    labels: list[bool] = []
    num_long_prompts = num_cut = 0
    rows = iter(rows)
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        for row, (prompt, completion) in zip(batch, _encode(batch, tokenizer), strict=True):
            if len(prompt) >= max_length:
                num_long_prompts += 1
                continue
            num_cut += len(prompt) + len(completion) > max_length
            prompts.append(prompt)
            completions.append(completion)
            labels.append(row["label"])
    if len(labels) < 2:
        seen = f"has {len(labels)} ({num_long_prompts} prompts do not fit kto.max_length={max_length})"
        raise UserError(f"KTO needs at least two examples and {seen}", "add data, or raise kto.max_length")
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of = np.array([numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts], dtype=np.int64)
    examples = KtoExamples(*_flat(prompts), *_flat(completions), np.array(labels), prompt_of, max_length)
    return examples, {"examples": len(labels), "dropped_long_prompts": num_long_prompts, "cut_completions": num_cut}


def _flat(sequences: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    bounds = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=bounds[1:])
    return np.fromiter((token for sequence in sequences for token in sequence), np.int32, int(bounds[-1])), bounds


def _encode(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, completion) token ids of each row."""
    if not isinstance(rows[0]["prompt"], str):
        ensure_chat_template(tokenizer)
        texts = [text for row in rows for text in _conversation_texts(row, tokenizer)]
        ids = _ids(texts, tokenizer, special=False)
        return list(zip(ids[::2], ids[1::2], strict=True))
    eos = tokenizer.eos_token_id
    prompts = _ids([row["prompt"] for row in rows], tokenizer, special=True)
    completions = _ids([row["completion"] for row in rows], tokenizer, special=False)
    # a tokenizer that closes every text with eos would have the model answer after the end
    prompts = [ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids for ids in prompts]
    return [(prompt, [*completion, eos]) for prompt, completion in zip(prompts, completions, strict=True)]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, special: bool) -> list[list[int]]:
    return cast(list[list[int]], tokenizer(texts, add_special_tokens=special)["input_ids"])


def _conversation_texts(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    prompt, completion = row["prompt"], row["completion"]
    # tokenize=False gives the text; the stub's return type is that of every setting
    prompt_text = cast(str, tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    whole_text = cast(str, tokenizer.apply_chat_template(prompt + completion, tokenize=False))
    if not whole_text.startswith(prompt_text):
        problem = "the chat template writes a prompt differently before an answer, so the two cannot be separated"
        raise UserError(problem, "use a chat template whose generation prompt is the start of the assistant's turn")
    return prompt_text, whole_text[len(prompt_text) :]


def refuse_single_label(is_desirable: np.ndarray, allow: bool) -> None:
    """Refuse labels that are all the same, unless that is allowed.

    Raises:
        UserError: they are.
    """
    if not allow and len(labels := np.unique(is_desirable)) == 1:
        why = "z0 would grow with the reward and the policy drift as unbounded SFT"
        fix = "add examples of the other label (a `rollout:` section makes them), or set kto.allow_single_label=true"
        raise UserError(f"every example is labelled {bool(labels[0])}: {why}", fix)


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
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


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
    for prompt, completion, length in zip(prompts, completions, lengths, strict=True):
        middle, end = start + len(prompt), start + length
        flat[start:middle], flat[middle:end] = prompt, completion
        predicts.append(np.arange(middle - 1, end - 1))
        start += length if packed else width
    return Bin(
        torch.from_numpy(input_ids),
        torch.cat([torch.arange(length) for length in lengths])[None] if packed else None,
        torch.from_numpy(np.concatenate(predicts)),
        torch.from_numpy(np.concatenate(completions).astype(np.int64)),
        [len(completion) for completion in completions],
        list(sequences),
    )
