"""KTO's examples as token ids, and which completion each prompt is mismatched with.

Pairs are fixed by (seed, example ids) before training: the examples in a keyed order, each one's mismatched completion
that of its successor. Nobody is paired with itself, every completion serves exactly once, and neither batches nor
workers can change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from blake3 import blake3
from transformers import PreTrainedTokenizerBase

from ladle.errors import UserError


@dataclass(frozen=True)
class KtoExample:
    """One labelled completion as token ids; `kl_ids` is another example's completion."""

    prompt_ids: list[int]
    completion_ids: list[int]
    is_desirable: bool
    kl_ids: list[int]


@dataclass(frozen=True)
class _Tokenized:
    prompt_ids: list[int]
    completion_ids: list[int]
    is_desirable: bool


def make_examples(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int
) -> tuple[list[KtoExample], dict[str, int]]:
    """Tokenize rows of prompt, completion and label, cut to `max_length` tokens, and pair them.

    Returns:
        The examples, and the counts of dropped and cut ones.

    Raises:
        UserError: fewer than two rows are left, so that no mismatched pair exists.
    """
    tokenized = [_tokenize(row, tokenizer) for row in rows]
    fitting = [example for example in tokenized if len(example.prompt_ids) < max_length]
    cut = [_cut(example, max_length) for example in fitting]
    if len(cut) < 2:
        raise UserError(f"KTO needs at least two examples and has {len(cut)}", "add data, or raise kto.max_length")
    partner = mismatched_partners(len(cut), seed)
    counters = {
        "dropped_long_prompts": len(tokenized) - len(fitting),
        "cut_completions": sum(
            len(a.completion_ids) != len(b.completion_ids) for a, b in zip(fitting, cut, strict=True)
        ),
    }
    examples = [
        KtoExample(
            example.prompt_ids,
            example.completion_ids,
            example.is_desirable,
            cut[partner[index]].completion_ids[: max_length - len(example.prompt_ids)],
        )
        for index, example in enumerate(cut)
    ]
    return examples, counters


def mismatched_partners(count: int, seed: int) -> list[int]:
    """Return for each of `count` examples the index of the one whose completion it is mismatched with; never itself."""
    order = sorted(range(count), key=lambda index: blake3(f"{seed} {index}".encode()).digest())
    partner = [0] * count
    for position, index in enumerate(order):
        partner[index] = order[(position + 1) % count]
    return partner


def _tokenize(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> _Tokenized:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        completion_ids = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    else:
        # tokenize=False gives the text; the stub's return type is that of every setting
        prompt_text = cast(str, tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
        whole_text = cast(str, tokenizer.apply_chat_template(prompt + completion, tokenize=False))
        if not whole_text.startswith(prompt_text):
            raise UserError(
                "the chat template writes a prompt differently once the answer follows, "
                "so that the two cannot be told apart",
                "use a chat template whose generation prompt is the start of the assistant's turn",
            )
        prompt_ids = tokenizer(prompt_text, add_special_tokens=False)["input_ids"]
        completion_ids = tokenizer(whole_text[len(prompt_text) :], add_special_tokens=False)["input_ids"]
    return _Tokenized(list(prompt_ids), list(completion_ids), row["label"])


def _cut(example: _Tokenized, max_length: int) -> _Tokenized:
    room = max_length - len(example.prompt_ids)
    return _Tokenized(example.prompt_ids, example.completion_ids[:room], example.is_desirable)


def pad_sequences(
    prompts: Sequence[list[int]], completions: Sequence[list[int]], pad_id: int
) -> dict[str, torch.Tensor]:
    """Return input_ids, attention_mask and is_completion of right-padded rows, each of shape (B, T)."""
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    shape = (len(prompts), max(lengths))
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    is_completion = torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor(prompt + completion)
        attention_mask[row, :end] = 1
        is_completion[row, len(prompt) : end] = True
    return {"input_ids": input_ids, "attention_mask": attention_mask, "is_completion": is_completion}
