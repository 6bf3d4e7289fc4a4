r"""How a question becomes a prompt.

`cot`, `openseek_sft` and `qwen25-math-cot` are upstream's prompt types of those names (OpenSeek's and Qwen2.5-Math's
`evaluation/utils.py`); `chat` is the model's own chat template. Few-shot examples are whole worked answers of the
same form: blocks of text before the question for `cot`, earlier turns for the others.

`cot`'s template ends in a space that is not sent, as upstream's is not: tokenizers put the space with the word after
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.evaluation.benchmark import Benchmark, FieldRule, PromptStyle
from ladle.evaluation.config import ExamplesConfig
from ladle.evaluation.items import load_items

Message = dict[str, str]

COT_TEMPLATE = "Question: {question}\nAnswer: "
COT_SEPARATOR = "\n\n\n"
COT_STOP = ("\nQuestion:",)
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example for few-shot prompts: a question and the whole answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is given for one question.

    Attributes:
        text: the prompt.
        stop: texts that end its completion.
        messages: the turns behind the text; None where the prompt is plain text.
    """

    text: str
    stop: tuple[str, ...] = ()
    messages: tuple[Message, ...] | None = None


def make_prompt(style: PromptStyle, question: str, tokenizer: Any, examples: Sequence[Example] = ()) -> Prompt:
    """Return the prompt of a question.

    Args:
        style: the prompt's form.
        question: the problem.
        tokenizer: the model's; only `chat` reads its template.
        examples: worked examples, shown in order before the question.

    Raises:
        UserError: `chat` for a tokenizer without a chat template.
    """
    if style == "cot":
        shown = [_fill(COT_TEMPLATE, example.question) + example.answer for example in examples]
        asked = _fill(COT_TEMPLATE, question).rstrip(" ")
        return Prompt(COT_SEPARATOR.join([*shown, asked]), COT_STOP)
    if style == "openseek_sft":
        turns = _turns(f"{_BOXED}\nQuestion:\n{{question}}", question, examples)
        messages = ({"role": "system", "content": ""}, *turns)
        return Prompt(_chatml(messages), messages=messages)
    if style == "qwen25-math-cot":
        messages = ({"role": "system", "content": _BOXED}, *_turns("{question}", question, examples))
        return Prompt(_chatml(messages), messages=messages)
    return _chat(tuple(_turns("{question}", question, examples)), tokenizer)


def load_examples(config: ExamplesConfig | None, paths: list[Path], count: int) -> list[Example]:
    """Return the first `count` worked examples of a dataset.

    Args:
        config: names the fields.
        paths: jsonl or parquet files, or folders with `<split>` files.
        count: examples to take.

    Raises:
        UserError: the dataset has fewer, or lacks a field.
    """
    if config is None or count == 0:
        return []
    shape = Benchmark(name="examples", question=[config.question], gold=[FieldRule(field=config.answer)])
    items = load_items(shape, paths, config.split)
    if len(items) < count:
        raise UserError(f"few_shot is {count}, and there are {len(items)} examples", "lower few_shot, or add examples")
    return [Example(item.question, item.gold) for item in items[:count]]


def encode_prompt(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Return a prompt's token ids: plain text with the tokenizer's own start token, turns just as written."""
    ids: list[int] = tokenizer.encode(prompt.text, add_special_tokens=prompt.messages is None)
    # A tokenizer that closes every text with eos would have the model answer after the end.
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def _fill(template: str, question: str) -> str:
    return template.replace("{question}", question)  # not str.format: other braces are LaTeX


def _turns(template: str, question: str, examples: Sequence[Example]) -> list[Message]:
    turns = []
    for example in examples:
        turns.append({"role": "user", "content": _fill(template, example.question)})
        turns.append({"role": "assistant", "content": example.answer})
    return [*turns, {"role": "user", "content": _fill(template, question)}]


def _chatml(messages: Sequence[Message]) -> str:
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    return turns + "<|im_start|>assistant\n"


def _chat(messages: tuple[Message, ...], tokenizer: Any) -> Prompt:
    if not tokenizer.chat_template:
        raise UserError("prompt=chat, and the model's tokenizer has no chat template", "use prompt=cot")
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return Prompt(text, messages=messages)
