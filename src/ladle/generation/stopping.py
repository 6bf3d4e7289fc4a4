"""When a completion ends: the ids that end a sequence, and texts that do."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container
from typing import Any

from ladle.generation.request import Request, Sample

_CHAT_END = "<|im_end|>"
_PROBE = "ladle"


def stop_token_ids(model_eos: int | list[int] | None, tokenizer: Any) -> list[int]:
    """Return every id that ends a completion, sorted.

    They are the generation config's and the tokenizer's end-of-sequence ids, `<|im_end|>` where the vocabulary has
    it, and the special token that the chat template writes after an assistant's turn: models trained on a template
    often end a turn with that one and never with their eos.

    Args:
        model_eos: `generation_config.eos_token_id` of the model.
        tokenizer: a Hugging Face tokenizer.
    """
    ids = set([model_eos] if isinstance(model_eos, int) else model_eos or [])
    ids |= {tokenizer.eos_token_id, tokenizer.get_vocab().get(_CHAT_END), _turn_end_id(tokenizer)} - {None}
    return sorted(ids)


def _turn_end_id(tokenizer: Any) -> int | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(_PROBE)[2]
    special = {
        text: id_ for text, id_ in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True) if text
    }
    starting = [text for text in special if after.startswith(text)]
    return special[max(starting, key=len)] if starting else None


def make_sample(request: Request, token_ids: list[int], stop_ids: Container[int], tokenizer: Any) -> Sample:
    """Return the sample that a request's new tokens make, cut at the first stop text."""
    cut = cut_at_stop(tokenizer, token_ids, request.stop) if request.stop else None
    if cut:
        return Sample(request.id, cut[0], cut[1], "stop")
    reason = "stop" if token_ids and token_ids[-1] in stop_ids else "length"
    return Sample(request.id, token_ids, decode(tokenizer, token_ids), reason)


def cut_at_stop(tokenizer: Any, token_ids: list[int], stop: tuple[str, ...]) -> tuple[list[int], str] | None:
    """Return the fewest first tokens whose text holds a stop text, and the text before it; None without one."""
    text = decode(tokenizer, token_ids)
    if not any(end in text for end in stop):
        return None

    def holds_stop(count: int) -> bool:
        return any(end in decode(tokenizer, token_ids[:count]) for end in stop)

    # Once a stop text is there, more tokens do not take it away: bisect.
    count = bisect_left(range(len(token_ids)), True, key=holds_stop)
    text = decode(tokenizer, token_ids[:count])
    return token_ids[:count], text[: min(place for end in stop if (place := text.find(end)) >= 0)]


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """Return tokens as text, special tokens left out and spaces kept as they are."""
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
