"""Prompts and completions as token ids: the chat template, where a completion begins, and the tokens around a text.

A prompt and its completion are encoded as one text and split at the prompt's end, so that tokenizers which put a blank
before every text put none before the completion. Where the prompt alone has other tokens than in the whole (`: ` and
`4`, whose blank goes with the 4; `hel` and `lo`), the completion begins with the token that reaches past the prompt's
end, as in TRL; but if it begins with white space, the prompt keeps the tokens that it has when a model completes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import takewhile
from typing import Any, NamedTuple, cast

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from ladle.errors import BadRow, UserError
from ladle.log import get_logger

logger = get_logger(__name__)

END_OF_TURN = "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As TRL's `setup_chat_format` writes it."""
TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a chat template raises for turns that it cannot write."""
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_UNWRITTEN = {"role", "type", "id", "tool_call_id"}
"""Keys of turns that templates read to decide, and do not write."""
_LEAST_SHARED = 32
"""Tokens that prompts must begin with for these to be worth computing once."""
Turn = dict[str, Any]


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a chat template ChatML's, with a warning.

    The vocabulary stays as it is: where it lacks ChatML's markers they are ordinary text, several tokens each.
    """
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
        is_known = tokenizer.convert_tokens_to_ids(END_OF_TURN) not in (None, tokenizer.unk_token_id)
        logger.warning(
            "the tokenizer has no chat template: using ChatML%s",
            "" if is_known else f", whose markers ({END_OF_TURN}) are ordinary text in this vocabulary",
        )


def set_template_date(tokenizer: PreTrainedTokenizerBase, day: str | None, key: str) -> None:
    """Let a chat template that writes today's date write another, so that the same inputs give the same bytes.

    Args:
        tokenizer: whose template is replaced, in memory.
        day: ISO date; None if the recipe sets none.
        key: its key in the recipe, for errors.

    Raises:
        UserError: the template writes the date and the recipe sets none, or its form is not in the template.
    """
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {"": tokenizer.chat_template}
    for name, template in templates.items():
        if "strftime_now(" not in (template or ""):
            continue
        if day is None:
            problem = "the chat template writes the day on which it is used, so that another day gives other bytes"
            raise UserError(problem, f"set {key}, such as {date.today().isoformat()}")
        forms = [form for _, form in _TODAY.findall(template)]
        if template.count("strftime_now(") > len(forms):
            problem = "the chat template computes the form in which it writes the date"
            raise UserError(problem, "write the form into the template's strftime_now")
        written = {form: date.fromisoformat(day).strftime(form) for form in forms}
        templates[name] = f"{{% set strftime_now = {json.dumps(written)}.get %}}{template}"
    tokenizer.chat_template = templates.get("", templates)


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], **arguments: Any) -> str:
    """Return turns as the chat template writes them.

    Raises:
        BadRow: the template refuses these turns.
        UserError: it is not a template, or there is none.
    """
    try:
        # tokenize=False gives the text; the stub's return type is that of every setting
        return cast(str, tokenizer.apply_chat_template([*turns], tokenize=False, **arguments))
    except TemplateSyntaxError as error:
        problem = f"the chat template is not one: line {error.lineno}: {error.message}"
        raise UserError(problem, "correct chat_template in the model's tokenizer_config.json") from error
    except TEMPLATE_FAULTS as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise BadRow(f"turns that the chat template refuses ({reason})") from error


def write_row(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the texts of a row's prompt and completion, turns with their keys, `tools` and `chat_template_kwargs`.

    An assistant turn at the end of the prompt is continued by the completion's first one. A completion that did not end
    by an end token (`finish_reason`) is left open.

    Raises:
        BadRow: the template refuses the turns, or writes the prompt differently before an answer.
        UserError: it is not a template.
    """
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return prompt, completion
    ensure_chat_template(tokenizer)
    arguments = {"tools": row.get("tools"), **row.get("chat_template_kwargs", {})}
    whole = prompt + completion
    if continues := prompt[-1]["role"] == "assistant":
        joined = prompt[-1] | completion[0] | {"content": prompt[-1]["content"] + completion[0]["content"]}
        whole = [*prompt[:-1], joined, *completion[1:]]
    ends = {"add_generation_prompt": not continues, "continue_final_message": continues}
    prompt_text = render(tokenizer, prompt, **ends, **arguments)
    whole_text = render(tokenizer, whole, continue_final_message="finish_reason" in row, **arguments)
    if not whole_text.startswith(prompt_text):
        raise BadRow("a prompt that the chat template writes differently before an answer: the two cannot be separated")
    return prompt_text, whole_text[len(prompt_text) :]


def left_out(turns: Sequence[Turn], tools: Any, text: str) -> set[str]:
    """Return the keys of turns, and `tools`, of whose text the chat template wrote nothing or a part."""
    values = [("tools", tools)]
    for turn in turns:
        values += [(f"{turn['role']}'s {key}" if key == "content" else key, value) for key, value in turn.items()]
    return {
        name
        for name, value in values
        if name not in _UNWRITTEN and not all(_is_written(one, text) for one in _texts_in(value))
    }


def _is_written(value: str, text: str) -> bool:
    """Whether a text holds a value as it is or, since templates trim, split and escape, word by word."""
    if value.strip() in text:
        return True
    spoken, words = (" ".join(re.findall(r"\w+", one)) for one in (value, text))
    return bool(spoken) and f" {spoken} " in f" {words} "


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _UNWRITTEN:
                yield from _texts_in(item)


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that a tokenizer puts before a text: its start token, or none."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    pairs = zip(cast(list[int], encoded["input_ids"]), cast(list[int], encoded["special_tokens_mask"]), strict=True)
    return [token for token, is_special in takewhile(lambda pair: pair[1], pairs)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text to go on from: with the start token, and without one that closes every text."""
    return start_ids(tokenizer) + tokenizer.encode(text, add_special_tokens=False)


def count_shared(prompts: Iterable[Sequence[int] | np.ndarray], kept_apart: int) -> int:
    """Return how many tokens all prompts begin with; 0 where these are too few to be worth computing once.

    Args:
        prompts: the ids of each.
        kept_apart: tokens at the end of each that are not counted.
    """
    same: np.ndarray | None = None
    for prompt in prompts:
        ids = np.asarray(prompt)[: max(0, len(prompt) - kept_apart)]
        same = ids if same is None else same[: len(ids)]
        differs = np.flatnonzero(same != ids[: len(same)])
        same = same[: differs[0]] if len(differs) else same
        if len(same) < _LEAST_SHARED:
            return 0
    return 0 if same is None else len(same)


class Encoded(NamedTuple):
    """A row's token ids."""

    prompt: list[int]
    completion: list[int]
    prompt_alone: list[int]
    """The prompt's ids where no completion follows: equal for equal prompts."""
    left_out: set[str] = set()
    """What the chat template did not write."""


def encode_rows(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Encoded | BadRow]:
    """Return the token ids of each row of prompt and completion, or why it has none.

    Rows with `prompt_ids` and `completion_ids` keep those. A text prompt gets the tokenizer's start token, a text
    completion its end token, unless they are there or it did not end so (`finish_reason`); conversations
    have what the chat template writes.

    Raises:
        UserError: the chat template is not one, or texts cannot end because the tokenizer has no eos_token.
    """
    start, eos = start_ids(tokenizer), cast(int | None, tokenizer.eos_token_id)
    result: dict[int, Encoded | BadRow] = {}
    texts: dict[int, tuple[str, str]] = {}
    for place, row in enumerate(rows):
        try:
            if "completion_ids" in row:
                result[place] = Encoded(row["prompt_ids"], row["completion_ids"], row["prompt_ids"])
            else:
                texts[place] = write_row(row, tokenizer)
        except BadRow as reason:
            result[place] = reason
    for place, encoded in zip(texts, encode_pairs(texts.values(), tokenizer), strict=True):
        row, (prompt, completion, alone, _) = rows[place], encoded
        if not isinstance(row["prompt"], str):
            result[place] = encoded._replace(
                left_out=left_out(row["prompt"] + row["completion"], row.get("tools"), "".join(texts[place]))
            )
            continue
        if eos is None:
            problem = "the tokenizer has no eos_token, so that a completion of text would have no end"
            raise UserError(problem, "add `eos_token` to the model's tokenizer_config.json")
        prompt, alone = (ids if ids[: len(start)] == start else start + ids for ids in (prompt, alone))
        if "finish_reason" not in row and completion[-1:] != [eos]:
            completion = [*completion, eos]
        result[place] = Encoded(prompt, completion, alone)
    return [result[place] for place in range(len(rows))]


def encode_pairs(pairs: Iterable[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Return the ids of each prompt and its completion, without tokens that their texts do not hold."""
    texts = [*pairs]
    prompts = _ids([prompt for prompt, _ in texts], tokenizer)
    wholes = _ids([prompt + completion for prompt, completion in texts], tokenizer)
    result = []
    for (prompt_text, completion_text), prompt, whole in zip(texts, prompts, wholes, strict=True):
        inside = len(prompt)
        if whole[:inside] != prompt:
            places = tokenizer(prompt_text + completion_text, add_special_tokens=False, return_offsets_mapping=True)
            inside = sum(end <= len(prompt_text) for _, end in cast(Any, places["offset_mapping"]))
            if completion_text[:1].isspace() or inside == 0:
                result.append(Encoded(prompt, _encode_apart(completion_text, tokenizer), prompt))
                continue
        result.append(Encoded(whole[:inside], whole[inside:], prompt))
    return result


def _encode_apart(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a text that follows another, as if a token ended between them."""
    for before in ("a", "\n", ":"):  # one of them does not become one token with the text's beginning
        alone, whole = _ids([before, before + text], tokenizer)
        if whole[: len(alone)] == alone:
            return whole[len(alone) :]
    return _ids([text], tokenizer)[0]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return cast(list[list[int]], tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []
