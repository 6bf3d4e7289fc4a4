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
from functools import partial
from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.evaluation.benchmark import Benchmark, FieldRule, Item, PromptStyle, load_items
from ladle.evaluation.config import ExamplesConfig
from ladle.executors import WHOLE, Shard, make_executor
from ladle.generation.complete import Completed, complete, make_generator, positions_of
from ladle.generation.request import Request, Sample, SamplingConfig, Workers, make_requests
from ladle.grading.extract import Extraction
from ladle.grading.grade import Grade, Grader, GraderConfig, Verdict
from ladle.log import get_logger, progress
from ladle.models.chat import render

logger = get_logger(__name__)
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
        UserError: `chat` for a tokenizer without a chat template, or with one that refuses these turns.
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
    else:
        if not tokenizer.chat_template:
            raise UserError("prompt=chat, and the model's tokenizer has no chat template", "use prompt=cot")
        try:
            text = render(tokenizer, turns, add_generation_prompt=True)
        except UserError as error:
            raise UserError(f"prompt=chat: {error.problem}", "use prompt=cot") from error
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
    bare = tokenizer.encode(text, add_special_tokens=False)
    # A tokenizer that closes every text with eos would have the model answer after the end.
    return ids if ids[len(ids) - len(bare) :] == bare else ids[:-1]


@dataclass(frozen=True)
class Task:
    """Items to attempt, each with its prompt. The name enters the samples' seeds and the progress line."""

    name: str
    items: Sequence[Item]
    prompts: Sequence[Prompt]

    def requests(self, sampling: SamplingConfig, positions: int | None) -> list[Request]:
        """Return the requests for all samples of all items, in order, of a model with so many positions.

        Raises:
            UserError: a prompt leaves no room for an answer.
        """
        requests = [
            request
            for item, prompt in zip(self.items, self.prompts, strict=True)
            for request in make_requests(sampling, self.name, item.idx, prompt.ids, prompt.stop, positions)
        ]
        if short := sum(request.max_new_tokens < sampling.max_new_tokens for request in requests):
            text = "%s: %d of %d completions end at position %d of the model, before max_new_tokens=%d"
            logger.warning(text, self.name, short, len(requests), positions, sampling.max_new_tokens)
        return requests

    def samples(self, done: Completed, num_samples: int) -> list[list[Sample]]:
        """Return the samples of each item, in order."""
        return [[done.samples[f"{self.name}/{item.idx}/{n}"] for n in range(num_samples)] for item in self.items]


def complete_tasks(
    tasks: Sequence[Task],
    sampling: SamplingConfig,
    workers: Workers,
    model: Path,
    tokenizer: Any,
    folder: Path,
    shard: Shard = WHOLE,
    dtype: str = "float32",
) -> Completed:
    """Complete all tasks' prompts, or a share of them, into a folder that keeps finished samples across crashes.

    Raises:
        UserError: a prompt leaves no room for an answer.
    """
    positions = positions_of(model)
    if sampling.temperature == 0 and sampling.samples > 1:
        logger.warning("all %d samples of a prompt are the same at temperature 0", sampling.samples)
    requests = [request for task in tasks for request in task.requests(sampling, positions)]
    make = partial(make_generator, sampling, model, tokenizer, dtype)
    executor = make_executor(workers.executor, workers.workers, on_gpus=True)
    return complete(requests, make, folder, executor, workers.workers, shard)


def find_unreadable(items: Sequence[Item], config: GraderConfig, name: str, consequence: str) -> set[int]:
    """Return the numbers of the items whose known answer cannot be read, so that only its very text would be right.

    Args:
        items: the problems.
        config: the grader's limits.
        name: what they are, for messages.
        consequence: what becomes of them, for the warning.

    Raises:
        UserError: there is no other, or an answer's type is not known.
    """
    with Grader(config) as grader:
        problems = list(grader.gold_problems(item.pair("") for item in items))
    found = [(item, problem) for item, problem in zip(items, problems, strict=True) if problem]
    if found:
        shown = "; ".join(f"{item.gold[:60]!r} ({problem})" for item, problem in found[:3])
        text = f"{len(found)} of {len(items)} known answers of {name} cannot be read, such as {shown}"
        if len(found) == len(items):
            raise UserError(text, "name the field that holds the answer alone, or set `type: text`")
        logger.warning("%s: %s", text, consequence)
    return {item.idx for item, _ in found}


def grade_samples(
    items: Sequence[Item],
    samples: Sequence[Sequence[Sample]],
    config: GraderConfig,
    name: str,
    extraction: Extraction = "ladle",
) -> list[list[Grade]]:
    """Return the grade of each completion of each item; of one that was cut, only a whole box or statement counts.

    Args:
        items: the problems.
        samples: for each of them, the model's completions.
        config: the grader's limits.
        name: what is graded, for the progress line.
        extraction: the rule that finds the answer.
    """
    pairs = [item.pair(sample.text) for item, several in zip(items, samples, strict=True) for sample in several]
    cut = [sample.finish_reason == "length" for several in samples for sample in several]
    grades: list[Grade] = []
    with Grader(config) as grader, progress(len(pairs), f"{name}: grading", "answers") as bar:
        for grade in grader.grade_completions(pairs, cut, extraction):
            grades.append(grade)
            bar.advance(1)
    unparsed = sum(grade.verdict == Verdict.UNPARSED for grade in grades)
    if 2 * unparsed > len(grades):
        text = "%s: %d of %d completions give no answer that can be read, %d were cut at their last token: %s"
        logger.warning(
            text, name, unparsed, len(grades), sum(cut), "look at some; raise max_new_tokens or change `prompt`"
        )
    in_order = iter(grades)
    return [[next(in_order) for _ in several] for several in samples]
