"""Score one model on benchmarks: prompts, completions, verdicts, and the result files of `ladle.evaluation.results`.

A killed run resumes from the samples it had finished. `_result.jsonl` holds nothing of when or how it ran, so it ends
with the bytes of an uninterrupted run; times are in the metrics.
"""

from __future__ import annotations

from pathlib import Path

from ladle.evaluation.attempts import (
    Task,
    complete_tasks,
    find_unreadable,
    grade_samples,
    load_examples,
    make_prompt,
)
from ladle.evaluation.benchmark import load_items, take
from ladle.evaluation.config import BenchmarkChoice, EvaluateModelConfig
from ladle.evaluation.results import FINAL_NAME, make_row, run_id, write_metrics, write_result
from ladle.evaluation.statistics import summarise, summarise_all
from ladle.executors import WHOLE, Shard
from ladle.generation.complete import Completed, discard_samples
from ladle.models.chat import set_template_date
from ladle.models.load import model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult


def run(config: EvaluateModelConfig, inputs: Inputs, out: Path) -> StageResult:
    """Evaluate the model in `model` on the items in each `benchmark:<name>`, with few-shot prompts from `examples`."""
    tasks, unreadable, done = _complete(config, inputs, out)
    sampling, identity = config.sampling, config.identity()
    rows_of, metrics_of = {}, {}
    for choice, task in zip(config.benchmarks, tasks, strict=True):
        samples = task.samples(done, sampling.samples)
        grades = grade_samples(task.items, samples, config.grader, task.name, config.extraction)
        rows = [make_row(*one) for one in zip(task.items, samples, grades, strict=True)]
        style = config.style(choice)
        # Everything that decided the completions and their verdicts.
        decided = ("few_shot", "dtype", "sampling", "extraction", "grader")
        settings = {"prompt": style, **{key: identity[key] for key in decided}}
        metrics = summarise(rows, unreadable[task.name], sampling.seed, done.seconds[task.name], settings)
        name = run_id(choice.split, style, config.limit, sampling.seed, sampling.temperature, config.start, config.end)
        write_result(out / task.name, name, rows, metrics)
        rows_of[task.name], metrics_of[task.name] = rows, metrics
    final = summarise_all(rows_of, metrics_of, sampling.seed)
    write_metrics(out / FINAL_NAME, final)
    discard_samples(out)
    recorded = {}
    for name, one in final["benchmarks"].items():
        low, high = one["interval_wilson"]
        counts = {**one["verdicts"], "truncated": one["truncated_samples"], "gold_unreadable": one["gold_unreadable"]}
        recorded[name] = {"accuracy": one["accuracy"], "n": one["n"], "low": low, "high": high, **counts}
    return StageResult({"items": final["num_samples"]}, recorded)


def run_shard(config: EvaluateModelConfig, inputs: Inputs, out: Path, shard: Shard) -> None:
    """Complete one share of every benchmark's requests; `run` finds them finished."""
    _complete(config, inputs, out, shard)


def _complete(
    config: EvaluateModelConfig, inputs: Inputs, out: Path, shard: Shard = WHOLE
) -> tuple[list[Task], dict[str, int], Completed]:
    model = model_dir(inputs["model"][0])
    tokenizer = load_fast_tokenizer(model)
    examples = load_examples(config.examples, inputs.get("examples", []), config.few_shot)

    def make_task(choice: BenchmarkChoice) -> Task:
        items = load_items(choice.definition(), inputs[f"benchmark:{choice.name}"], choice.split)
        items = take(items, config.limit, config.start, config.end, choice.name)
        style = config.style(choice)
        if style == "chat":
            set_template_date(tokenizer, config.template_date, "evaluate.template_date")
        return Task(choice.name, items, [make_prompt(style, item.question, tokenizer, examples) for item in items])

    tasks = [make_task(choice) for choice in config.benchmarks]
    what = "no answer but their very text is right; they are counted apart"
    unreadable = {task.name: len(find_unreadable(task.items, config.grader, task.name, what)) for task in tasks}
    done = complete_tasks(tasks, config.sampling, config, model, tokenizer, out, shard, config.dtype)
    return tasks, unreadable, done
