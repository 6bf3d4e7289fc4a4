r"""Attempts of a model at items: the prompts, the samples that complete them, and their grades.

Evaluation reports them, rollouts make preference data of them, a gate counts them.

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
from ladle.evaluation.benchmark import Benchmark, FieldRule, Item, PromptStyle, load_items
from ladle.evaluation.config import ExamplesConfig
from ladle.generation.complete import Completed
from ladle.generation.request import Request, Sample, SamplingConfig, make_requests
from ladle.grading.grade import Grade, Grader, GraderConfig, Pair
from ladle.log import progress

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
        ids: token ids: of plain text with the tokenizer's own start token, of turns just as they are written.
        text: the prompt.
        stop: texts that end its completion.
        messages: the turns behind the text; None where the prompt is plain text.
    """

    ids: list[int]
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
        text = COT_SEPARATOR.join([*shown, _fill(COT_TEMPLATE, question).rstrip(" ")])
        return Prompt(_encode(text, tokenizer, add_special_tokens=True), text, COT_STOP)
    template = f"{_BOXED}\nQuestion:\n{{question}}" if style == "openseek_sft" else "{question}"
    system = {"openseek_sft": "", "qwen25-math-cot": _BOXED}.get(style)
    turns = [] if system is None else [{"role": "system", "content": system}]
    for example in examples:
        turns.append({"role": "user", "content": _fill(template, example.question)})
        turns.append({"role": "assistant", "content": example.answer})
    turns.append({"role": "user", "content": _fill(template, question)})
    if style != "chat":
        text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
        text += "<|im_start|>assistant\n"
    elif tokenizer.chat_template:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    else:
        raise UserError("prompt=chat, and the model's tokenizer has no chat template", "use prompt=cot")
    return Prompt(_encode(text, tokenizer, add_special_tokens=False), text, messages=tuple(turns))


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


def _fill(template: str, question: str) -> str:
    return template.replace("{question}", question)  # not str.format: other braces are LaTeX


def _encode(text: str, tokenizer: Any, add_special_tokens: bool) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    # A tokenizer that closes every text with eos would have the model answer after the end.
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


@dataclass(frozen=True)
class Task:
    """Items to attempt, each with its prompt. The name enters the samples' seeds and the progress line."""

    name: str
    items: Sequence[Item]
    prompts: Sequence[Prompt]

    def requests(self, sampling: SamplingConfig) -> list[Request]:
        """Return the requests for all samples of all items, in order."""
        return [
            request
            for item, prompt in zip(self.items, self.prompts, strict=True)
            for request in make_requests(sampling, self.name, item.idx, prompt.ids, prompt.stop)
        ]

    def samples(self, done: Completed, num_samples: int) -> list[list[Sample]]:
        """Return the samples of each item, in order."""
        return [[done.samples[f"{self.name}/{item.idx}/{n}"] for n in range(num_samples)] for item in self.items]


def grade_completions(
    items: Sequence[Item], texts: Sequence[Sequence[str]], config: GraderConfig, name: str
) -> list[list[Grade]]:
    """Return the grade of each completion of each item.

    Args:
        items: the problems.
        texts: for each of them, the model's completions.
        config: the grader's limits.
        name: what is graded, for the progress line.
    """
    pairs = [
        Pair(item.gold, text, item.type, item.tolerance, item.unit, item.multiple)
        for item, several in zip(items, texts, strict=True)
        for text in several
    ]
    grades = []
    with Grader(config) as grader, progress(len(pairs), f"{name}: grading", "answers") as bar:
        for grade in grader.grade_completions(pairs):
            grades.append(grade)
            bar.advance(1)
    in_order = iter(grades)
    return [[next(in_order) for _ in several] for several in texts]
