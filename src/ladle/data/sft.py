"""Conversations and completions as packed rows of tokens of which only the answers are trained on.

The rows come from the prefer stage, so that SFT reads what KTO reads. The result is a mixture whose shards have a mask
beside them, one byte a token: 1 where it is trained on.

Answers are what the chat template encloses in `{% generation %}` tags. Without tags an answer is the text that its turn
adds to the conversation, from the end of the generation prompt to what the template closes the turn with. Some
templates rewrite earlier turns (Qwen3 drops their thinking): then the text of the whole conversation counts. A row is
counted as bad if the template writes the turns before an answer differently once the answer is there.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from datasets import load_from_disk
from transformers import PreTrainedTokenizerBase

from ladle.artifacts.files import pretty_json
from ladle.data.config import SftDataConfig
from ladle.data.mixing import write_packed
from ladle.data.prefer import DATASET, read_examples
from ladle.data.store import MIXTURE_FILE, MIXTURE_FORMAT, SEGMENT, ShardWriter
from ladle.errors import BadRow, UserError
from ladle.log import get_logger
from ladle.models.chat import Encoded, encode_rows, ensure_chat_template, left_out, render, set_template_date
from ladle.models.load import model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)

ROWS_AT_ONCE = 1_000
_MARK = "ANSWER"
_REWRITTEN = "turns that the chat template writes differently before an answer"
Row = dict[str, Any]


class Conversation(NamedTuple):
    """A conversation, or a prompt with its completion, as tokens."""

    ids: list[int]
    is_trained: list[bool]
    left_out: Collection[str] = ()
    """What of the turns the chat template does not write."""


def run(config: SftDataConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write every split of `preference` as packed rows: `tokens/`, an index for each split, and `mixture.json`."""
    for path in out.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "tokens").mkdir()
    tokenizer = load_fast_tokenizer(model_dir(inputs["tokenizer"][0]))
    data = load_from_disk(inputs["preference"][0] / DATASET)
    if "train" not in data:
        problem = f"every source of sft.data goes into {', '.join(map(str, data))}, and none is trained on"
        raise UserError(problem, "leave `into` out of one")
    is_conversational = not isinstance(data["train"][0]["prompt"], str)
    if is_conversational:
        ensure_chat_template(tokenizer)
        set_template_date(tokenizer, config.template_date, "sft.template_date")
    counters: dict[str, int] = {}
    splits: dict[str, dict[str, Any]] = {}
    shards: list[dict[str, Any]] = []
    for number, split in enumerate(data):
        shard, segments, counts = _write_tokens(config, read_examples(data[split]), tokenizer, out, str(split))
        segments["shard"] = number
        packing = "best_fit" if config.packing else "none"
        splits[str(split)] = write_packed([segments], packing, config.max_length, config.seed, out / str(split))
        shards.append(shard)
        counters |= counts if split == "train" else {f"{split}: {name}": count for name, count in counts.items()}
    mixture = {
        "format": MIXTURE_FORMAT,
        "sequence_length": config.max_length,
        "vocab_size": len(tokenizer),
        "pad_id": cast(int, tokenizer.pad_token_id or 0),
        "conversational": is_conversational,
        "splits": splits,
        "shards": shards,
    }
    (out / MIXTURE_FILE).write_text(pretty_json(mixture), encoding="utf-8")
    return StageResult(counters, splits)


def _write_tokens(
    config: SftDataConfig, rows: Iterator[Row], tokenizer: PreTrainedTokenizerBase, out: Path, split: str
) -> tuple[dict[str, Any], np.ndarray, dict[str, int]]:
    """Write a split's tokens and mask; return the shard's entry in mixture.json, its documents, and the counts."""
    bad, unwritten, first_bad = Counter[str](), Counter[str](), ""
    lengths: list[int] = []
    num_rows = num_cut = num_trained = 0
    shard, mask = f"tokens/{split}.bin", f"tokens/{split}.mask"
    with (out / shard).open("wb") as tokens_file, (out / mask).open("wb") as mask_file:
        writer = ShardWriter(tokens_file, "<u4")
        for row, found in encode_conversations(rows, tokenizer):
            num_rows += 1
            if isinstance(found, Conversation) and not any(found.is_trained[1 : config.max_length]):
                found = BadRow("no answer within max_length")
            if isinstance(found, BadRow):
                bad[found.problem] += 1
                first_bad = first_bad or str(row["prompt"])[:80]
                continue
            ids = np.array(found.ids[: config.max_length])
            is_trained = np.array(found.is_trained[: config.max_length])
            num_cut += len(found.ids) > len(ids)
            unwritten.update(found.left_out)
            num_trained += int(is_trained[1:].sum())
            writer.write(ids, np.array([len(ids)]))
            mask_file.write(is_trained.astype(np.uint8).tobytes())
            lengths.append(len(ids))
        writer.finish()
    reasons = ", ".join(f"{count} with {reason}" for reason, count in bad.most_common())
    if bad.total() > config.max_bad_fraction * num_rows or not lengths:
        problem = f"{bad.total()} of {num_rows} conversations cannot be trained on: {reasons}; first: {first_bad!r}"
        fix = "raise sft.max_length or sft.max_bad_fraction, or give the chat template {% generation %} tags"
        raise UserError(problem, fix)
    if bad:
        logger.warning("%d of %d conversations are left out: %s", bad.total(), num_rows, reasons)
    for key, count in unwritten.items():
        logger.warning("the chat template does not write all of %s in %d of %d conversations", key, count, num_rows)
    if num_cut:
        logger.warning("%d of %d conversations lose their end to max_length=%d", num_cut, num_rows, config.max_length)
    segments = np.zeros(len(lengths), SEGMENT)
    segments["length"], segments["offset"] = lengths, np.cumsum([0, *lengths[:-1]])
    counts = {"conversations": len(lengths), "cut_conversations": num_cut, "trained_tokens": num_trained}
    counts |= {"tokens": sum(lengths)} | {f"bad: {reason}": count for reason, count in sorted(bad.items())}
    return {"file": shard, "mask": mask, "tokens": sum(lengths), "rows": len(lengths)}, segments, counts


def encode_conversations(
    rows: Iterator[Row], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Row, Conversation | BadRow]]:
    """Yield each row of prompt and completion as tokens, or why it has none."""
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        pairs = iter(encode_rows([row for row in batch if _is_pair(row)], tokenizer))
        for row in batch:
            try:
                found = _of_pair(next(pairs)) if _is_pair(row) else encode_conversation(row, tokenizer)
            except BadRow as reason:
                found = reason
            yield row, found


def _is_pair(row: Row) -> bool:
    """Whether all that follows a row's prompt is one answer: text, sampled tokens, or an answer that was cut."""
    return isinstance(row["prompt"], str) or "completion_ids" in row or "finish_reason" in row


def _of_pair(found: Encoded | BadRow) -> Conversation:
    if isinstance(found, BadRow):
        raise found
    return Conversation(found.prompt + found.completion, [False] * len(found.prompt) + [True] * len(found.completion))


def encode_conversation(row: Row, tokenizer: PreTrainedTokenizerBase) -> Conversation:
    """Return a conversation's tokens; those of the assistant's turns in `completion` are trained on.

    Raises:
        BadRow: the chat template refuses the turns, or its text does not tell where the answers are.
        UserError: it is not a template.
    """
    prompt, turns = row["prompt"], row["prompt"] + row["completion"]
    arguments = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
    write = partial(render, tokenizer, **arguments)
    text = write(turns)
    encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places, template = encoded["offset_mapping"], str(tokenizer.get_chat_template(tools=arguments["tools"]))
    if "generation %}" in template or "generation -%}" in template:
        masked: Any = tokenizer.apply_chat_template(
            turns, return_dict=True, return_assistant_tokens_mask=True, **arguments
        )
        begin = 0
        if any(turn["role"] == "assistant" for turn in prompt):
            begin = len(write(prompt, add_generation_prompt=True))
        is_trained = [
            bool(mask) and start >= begin for mask, (start, _) in zip(masked["assistant_masks"], places, strict=True)
        ]
    else:
        spans = answer_spans(turns, len(prompt), text, write)
        is_trained = [any(first < end and last > start for start, end in spans) for first, last in places]
    return Conversation(encoded["input_ids"], is_trained, left_out(turns, row.get("tools"), text))


def answer_spans(turns: list[Row], first: int, text: str, write: Callable[..., str]) -> list[tuple[int, int]]:
    """Return where in a conversation's text the assistant's turns from number `first` on begin and end.

    Args:
        turns: the conversation.
        first: the first turn that may be trained on.
        text: what the chat template writes of all turns.
        write: the chat template.

    Raises:
        BadRow: the text does not tell.
    """
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and place >= first]
    spans = []
    for place, following in zip(answers, [*answers[1:], len(turns)], strict=True):
        before, after = write(turns[:place], add_generation_prompt=True), write(turns[: place + 1])
        if not text.startswith(before):
            raise BadRow(_REWRITTEN)
        if text.startswith(after) and after.startswith(before):
            spans.append((len(before), len(after)))
            continue
        # the template rewrites this answer once other turns follow: put another one there and see what follows that
        known = [*turns[:place], {"role": "assistant", "content": _MARK}]
        asks = following < len(turns)
        closing = write(known).rpartition(_MARK)[2]
        rest = write([*known, *turns[place + 1 : following]], add_generation_prompt=asks).rpartition(_MARK)[2]
        whole = write(turns[:following], add_generation_prompt=asks)
        if not (text.startswith(whole) and whole.endswith(rest) and rest.startswith(closing)):
            raise BadRow(_REWRITTEN)
        spans.append((len(before), len(whole) - len(rest) + len(closing)))
    return spans
