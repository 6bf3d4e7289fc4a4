r"""Attempts of a model at items: the prompts, the samples that complete them, and their grades.

Evaluation (`run`) reports them, rollouts make preference data of them, a gate counts them.

`cot`, `openseek_sft` and `qwen25-math-cot` are upstream's prompt types of those names (OpenSeek's and Qwen2.5-Math's
`evaluation/utils.py`); `chat` is the model's own chat template. Few-shot examples are whole worked answers of the
same form: blocks of text before the question for `cot`, earlier turns for the others. `cot`'s `Answer: ` ends in a
space that is not sent, as upstream's is not: tokenizers put the space with the word after it.

A killed evaluation resumes from the samples it had finished. `_result.jsonl` holds nothing of when or how it ran, so it
ends with the bytes of an uninterrupted run; times are in the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.evaluation.benchmark import Benchmark, FieldRule, Item, PromptStyle, load_items, take
from ladle.evaluation.config import BenchmarkChoice, EvaluateModelConfig, ExamplesConfig
from ladle.evaluation.results import FINAL_NAME, make_row, write_metrics, write_result
from ladle.evaluation.statistics import ks_of_curve, pass_at, summarise, summarise_all
from ladle.executors import WHOLE, Shard, make_executor
from ladle.generation.complete import Completed, complete, discard_samples, make_generator, positions_of
from ladle.generation.request import Request, Sample, SamplingConfig, Workers, make_requests, mean_entropy
from ladle.grading.extract import Extraction
from ladle.grading.grade import Grade, Grader, GraderConfig, Verdict
from ladle.log import get_logger, progress
from ladle.models.chat import Turn, prompt_ids, render, set_template_date
from ladle.models.config import choose_dtype, model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)
COT_SEPARATOR = "\n\n\n"
COT_STOP = ("\nQuestion:",)
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is given for one question.

    Attributes:
        ids: token ids: of plain text with the tokenizer's own start token, of turns just as they are written.
        text: the prompt.
        stop: texts that end its completion.
        messages: the turns behind the text; None where the prompt is plain text.
        style: the prompt's form.
    """

    ids: list[int]
    text: str
    stop: tuple[str, ...] = ()
    messages: tuple[Turn, ...] | None = None
    style: PromptStyle = "cot"


def make_prompt(
    style: PromptStyle, question: str, tokenizer: Any, examples: Sequence[Item] = (), system_prompt: str | None = None
) -> Prompt:
    """Return the prompt of a question.

    Args:
        style: the prompt's form.
        question: the problem.
        tokenizer: the model's; only `chat` reads its template.
        examples: worked examples, whole answers as `gold`, shown in order before the question.
        system_prompt: the text of the system turn of `chat`; None has none.

    Raises:
        UserError: `chat` for a tokenizer without a chat template, or with one that refuses these turns.
    """
    if style == "cot":
        shown = [f"Question: {example.question}\nAnswer: {example.gold}" for example in examples]
        text = COT_SEPARATOR.join([*shown, f"Question: {question}\nAnswer:"])
        return Prompt(prompt_ids(tokenizer, text), text, COT_STOP)
    before = f"{_BOXED}\nQuestion:\n" if style == "openseek_sft" else ""
    system = {"openseek_sft": "", "qwen25-math-cot": _BOXED, "chat": system_prompt}[style]
    turns: list[Turn] = [] if system is None else [{"role": "system", "content": system}]
    for example in examples:
        turns.append({"role": "user", "content": before + example.question})
        turns.append({"role": "assistant", "content": example.gold})
    turns.append({"role": "user", "content": before + question})
    if style != "chat":
        written = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns]
        text = "".join([*written, "<|im_start|>assistant\n"])
        return Prompt(tokenizer.encode(text, add_special_tokens=False), text, (), tuple(turns), style)
    try:
        return make_chat_prompt(tokenizer, turns)
    except UserError as error:
        fix = "use prompt=cot" if system_prompt is None else "leave system_prompt out, or use prompt=cot"
        raise UserError(f"prompt=chat: {error.problem}", fix) from error


def make_chat_prompt(
    tokenizer: Any,
    messages: Sequence[Turn],
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Prompt:
    """Return the prompt of a conversation, as the tokenizer's chat template writes it.

    Raises:
        UserError: there is no chat template, or it refuses these turns.
    """
    if not tokenizer.chat_template:
        raise UserError("the model's tokenizer has no chat template", "add one to its tokenizer_config.json")
    text = render(tokenizer, messages, add_generation_prompt=True, tools=tools, **(chat_template_kwargs or {}))
    return Prompt(tokenizer.encode(text, add_special_tokens=False), text, (), tuple(messages), "chat")


def load_examples(config: ExamplesConfig | None, paths: list[Path], count: int) -> list[Item]:
    """Return the first `count` worked examples of a dataset, whole answers as `gold`.

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
    return items[:count]


@dataclass(frozen=True)
class Task:
    """Items to attempt, each with its prompt. The name enters the samples' seeds and the progress line."""

    name: str
    items: Sequence[Item]
    prompts: Sequence[Prompt] = ()

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
    requests: list[Request] = []
    for task in tasks:
        pairs = zip(task.items, task.prompts, strict=True)
        made = [make_requests(sampling, task.name, item.idx, one.ids, one.stop, positions) for item, one in pairs]
        if short := sum(own[0].max_new_tokens < sampling.max_new_tokens for own in made):
            text = "%s: %d of %d prompts' completions end at position %d of the model, before max_new_tokens=%d"
            logger.warning(text, task.name, short, len(made), positions, sampling.max_new_tokens)
        requests += chain.from_iterable(made)
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
        problems = grader.gold_problems(item.pair("") for item in items)
        found = [(item, problem) for item, problem in zip(items, problems, strict=True) if problem]
    if found:
        shown = "; ".join(f"{item.gold[:60]!r} ({problem})" for item, problem in found[:3])
        text = f"{len(found)} of {len(items)} known answers of {name} cannot be read, such as {shown}"
        if len(found) == len(items):
            raise UserError(text, "name the field that holds the answer alone, or set `type: text`")
        logger.warning("%s: %s", text, consequence)
    return {item.idx for item, _ in found}


def grade_samples(
    task: Task, samples: Sequence[Sequence[Sample]], config: GraderConfig, extraction: Extraction = "ladle"
) -> list[list[Grade]]:
    """Return the grade of each completion of each item; of one that was cut, only a whole box or statement counts.

    Args:
        task: the items.
        samples: for each of them, the model's completions.
        config: the grader's limits.
        extraction: the rule that finds the answer.
    """
    pairs = [item.pair(sample.text) for item, several in zip(task.items, samples, strict=True) for sample in several]
    cut = [sample.finish_reason == "length" for several in samples for sample in several]
    grades: list[Grade] = []
    with Grader(config) as grader, progress(len(pairs), f"{task.name}: grading", "answers") as bar:
        for grade in grader.grade_completions(pairs, cut, extraction):
            grades.append(grade)
            bar.advance(1)
    unparsed = sum(grade.verdict == Verdict.UNPARSED for grade in grades)
    if 2 * unparsed > len(grades):
        text = "%s: %d of %d completions give no answer that can be read, %d were cut at their last token: %s"
        fix = "look at some; raise max_new_tokens or change `prompt`"
        logger.warning(text, task.name, unparsed, len(grades), sum(cut), fix)
    in_order = iter(grades)
    return [[next(in_order) for _ in several] for several in samples]


def run(config: EvaluateModelConfig, inputs: Inputs, out: Path) -> StageResult:
    """Evaluate the model in `model` on the items in each `benchmark:<name>`, with few-shot prompts from `examples`."""
    tasks, unreadable, done = _complete(config, inputs, out)
    sampling, identity = config.sampling, config.identity()
    # Everything that decided the completions and their verdicts, but the prompt's style.
    decided = {key: identity[key] for key in ("few_shot", "system_prompt", "sampling", "extraction", "grader")}
    decided["dtype"] = choose_dtype(config.dtype)
    rows_of, metrics_of, recorded = {}, {}, {}
    for choice, task in zip(config.benchmarks, tasks, strict=True):
        samples = task.samples(done, sampling.samples)
        grades = grade_samples(task, samples, config.grader, config.extraction)
        rows = [make_row(*one) for one in zip(task.items, samples, grades, strict=True)]
        settings = {"prompt": config.style(choice), **decided}
        numbers = unreadable[task.name], sampling.seed, done.seconds[task.name]
        metrics = summarise(rows, *numbers, settings, entropy := mean_entropy(chain.from_iterable(samples)))
        write_result(out / task.name, config.run_id(choice), rows, metrics)
        rows_of[task.name], metrics_of[task.name] = rows, metrics
        curve = {str(k): pass_at(rows, k) for k in ks_of_curve(sampling.samples)} if sampling.samples > 1 else {}
        recorded[task.name] = {"pass_at_k": curve, "token_entropy": entropy}
    final = summarise_all(rows_of, metrics_of, sampling.seed)
    write_metrics(out / FINAL_NAME, final)
    discard_samples(out)
    for name, one in final["benchmarks"].items():
        low, high = one["interval_wilson"]
        counts = {**one["verdicts"], "truncated": one["truncated_samples"], "gold_unreadable": one["gold_unreadable"]}
        recorded[name] |= {"accuracy": one["accuracy"], "n": one["n"], "low": low, "high": high, **counts}
    return StageResult({"items": final["num_samples"]}, recorded)


def run_shard(config: EvaluateModelConfig, inputs: Inputs, out: Path, shard: Shard) -> None:
    """Complete one share of every benchmark's requests; `run` finds them finished."""
    _complete(config, inputs, out, shard)


def _complete(
    config: EvaluateModelConfig, inputs: Inputs, out: Path, shard: Shard = WHOLE
) -> tuple[list[Task], dict[str, int], Completed]:
    model = model_dir(inputs["model"][0])
    tokenizer = load_fast_tokenizer(model)
    tasks = make_tasks(config, inputs, tokenizer)
    what = "no answer but their very text is right; they are counted apart"
    unreadable = {task.name: len(find_unreadable(task.items, config.grader, task.name, what)) for task in tasks}
    done = complete_tasks(tasks, config.sampling, config, model, tokenizer, out, shard, choose_dtype(config.dtype))
    return tasks, unreadable, done


def make_tasks(config: EvaluateModelConfig, inputs: Inputs, tokenizer: Any) -> list[Task]:
    """Return the items of each `benchmark:<name>` with their prompts, few-shot ones from `examples`."""
    examples = load_examples(config.examples, inputs.get("examples", []), config.few_shot)

    def make_task(choice: BenchmarkChoice) -> Task:
        items = load_items(choice.definition(), inputs[f"benchmark:{choice.name}"], choice.split)
        items = take(items, *config.part(choice), choice.name)
        style = config.style(choice)
        if style == "chat":
            set_template_date(tokenizer, config.template_date, "evaluate.template_date")
        shown = examples, config.system_prompt
        return Task(choice.name, items, [make_prompt(style, item.question, tokenizer, *shown) for item in items])

    return [make_task(choice) for choice in config.benchmarks]
