"""Score one model on benchmarks: prompts, completions, verdicts, and the result files of the seeds' layout.

A killed run goes on from the samples it had finished. `_result.jsonl` holds nothing of when or how it ran, so it ends
with the bytes of an uninterrupted run; times are in the metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from ladle.evaluation.benchmark import PromptStyle
from ladle.evaluation.config import BenchmarkChoice, EvaluateModelConfig
from ladle.evaluation.items import Item, load_items, take
from ladle.evaluation.prompts import Example, encode_prompt, load_examples, make_prompt
from ladle.evaluation.results import FINAL_NAME, METRICS_SUFFIX, RESULT_SUFFIX, run_id, write_metrics, write_rows
from ladle.evaluation.rows import Completion, make_row
from ladle.evaluation.scoring import score_completions
from ladle.evaluation.summary import summarise, summarise_all
from ladle.executors import WHOLE, Shard, make_executor
from ladle.generation.backends import make_generator
from ladle.generation.complete import Completed, complete_sets, discard_logs
from ladle.generation.request import Request, make_request, sample_seed
from ladle.models.load import model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult

LOGS = ".samples"


def run(config: EvaluateModelConfig, inputs: Inputs, out: Path) -> StageResult:
    """Evaluate the model in `model` on the items in each `benchmark:<name>`, with few-shot prompts from `examples`."""
    rows_of, metrics_of = {}, {}
    for choice, items, done in _completed(config, inputs, out):
        rows = _graded_rows(config, choice, items, done)
        metrics = summarise(rows, config.sampling.seed, done.seconds, _settings(config, choice))
        _write(config, choice, rows, metrics, out)
        rows_of[choice.name], metrics_of[choice.name] = rows, metrics
    final = summarise_all(rows_of, metrics_of, config.sampling.seed)
    write_metrics(out / FINAL_NAME, final)
    _discard(out)
    return _record(final)


def run_shard(config: EvaluateModelConfig, inputs: Inputs, out: Path, shard: Shard) -> None:
    """Complete one share of every benchmark's requests; `run` finds them finished."""
    for _ in _completed(config, inputs, out, shard):
        pass


def _completed(
    config: EvaluateModelConfig, inputs: Inputs, out: Path, shard: Shard = WHOLE
) -> Iterator[tuple[BenchmarkChoice, list[Item], Completed]]:
    """Yield each benchmark with its items and their samples."""
    model = model_dir(inputs["model"][0])
    tokenizer = load_fast_tokenizer(model)
    examples = load_examples(config.examples, inputs.get("examples", []), config.few_shot)
    items_of = {choice.name: _items(config, choice, inputs) for choice in config.benchmarks}
    sets = {
        choice.name: _requests(config, choice, items_of[choice.name], examples, tokenizer)
        for choice in config.benchmarks
    }
    make = partial(make_generator, config.sampling, model, tokenizer, dtype=config.dtype)
    executor = make_executor(config.executor, config.workers, on_gpus=True)
    folders = {name: out / LOGS / name for name in sets}
    done = complete_sets(sets, make, folders, executor, config.workers, shard)
    for choice in config.benchmarks:
        yield choice, items_of[choice.name], done[choice.name]


def _items(config: EvaluateModelConfig, choice: BenchmarkChoice, inputs: Inputs) -> list[Item]:
    items = load_items(choice.definition(), inputs[f"benchmark:{choice.name}"], choice.split)
    return take(items, config.limit, config.start, config.end, choice.name)


def _requests(
    config: EvaluateModelConfig,
    choice: BenchmarkChoice,
    items: list[Item],
    examples: list[Example],
    tokenizer: PreTrainedTokenizerFast,
) -> list[Request]:
    """Return a request for each sample of each item, in item order."""
    requests = []
    for item in items:
        prompt = make_prompt(_style(config, choice), item.question, tokenizer, examples)
        prompt_ids = encode_prompt(prompt, tokenizer)
        for sample in range(config.sampling.samples):
            seed = sample_seed(config.sampling.seed, choice.name, item.idx, sample)
            name = _sample_name(item, sample)
            requests.append(make_request(config.sampling, name, prompt_ids, seed, prompt.stop))
    return requests


def _graded_rows(
    config: EvaluateModelConfig, choice: BenchmarkChoice, items: list[Item], done: Completed
) -> list[dict[str, Any]]:
    completions = []
    for item in items:
        samples = [done.samples[_sample_name(item, number)] for number in range(config.sampling.samples)]
        completions.append([Completion(one.text, len(one.token_ids), one.finish_reason) for one in samples])
    scored = score_completions(items, completions, config.grader, f"{choice.name}: grading")
    return [make_row(item, graded) for item, graded in zip(items, scored, strict=True)]


def _write(
    config: EvaluateModelConfig, choice: BenchmarkChoice, rows: list[dict[str, Any]], metrics: dict[str, Any], out: Path
) -> None:
    sampling = config.sampling
    stem = run_id(
        choice.split,
        _style(config, choice),
        config.limit,
        sampling.seed,
        sampling.temperature,
        config.start,
        config.end,
    )
    write_rows(out / choice.name / (stem + RESULT_SUFFIX), rows)
    write_metrics(out / choice.name / (stem + METRICS_SUFFIX), metrics)


def _discard(out: Path) -> None:
    """Remove the logs: every sample now stands in a result file."""
    if (out / LOGS).is_dir():
        for folder in (out / LOGS).iterdir():
            discard_logs(folder)
            folder.rmdir()
        (out / LOGS).rmdir()


def _record(final: dict[str, Any]) -> StageResult:
    """Return what the artifact's record keeps of the results."""
    metrics = {
        name: {
            "accuracy": one["accuracy"],
            "n": one["n"],
            "low": one["interval_wilson"][0],
            "high": one["interval_wilson"][1],
            **one["verdicts"],
            "truncated": one["truncated_samples"],
        }
        for name, one in final["benchmarks"].items()
    }
    return StageResult({"items": final["num_samples"]}, metrics)


def _settings(config: EvaluateModelConfig, choice: BenchmarkChoice) -> dict[str, Any]:
    """Return everything that decided the completions, for the metrics."""
    identity = config.identity()
    return {"prompt": _style(config, choice), **{key: identity[key] for key in ("few_shot", "dtype", "sampling")}}


def _style(config: EvaluateModelConfig, choice: BenchmarkChoice) -> PromptStyle:
    return config.prompt or choice.definition().prompt


def _sample_name(item: Item, sample: int) -> str:
    return f"{item.idx}/{sample}"
