"""Score one model on benchmarks: prompts, completions, verdicts, and the result files of the published layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ladle.checkup import Checkup, Estimate, Finding, Measured, Shrinking, guarded, ok, warning
from ladle.evaluation.config import BenchmarkChoice, EvaluateConfig, EvaluateModelConfig
from ladle.rollouts.config import check_generation, shrink_sampling
from ladle.stage import Stage, deferred

ITEMS = 2
"""Items of each benchmark in a rehearsal."""

run = deferred("ladle.evaluation.evaluate:run")
run_shard = deferred("ladle.evaluation.evaluate:run_shard")


def check(check: Checkup) -> Iterator[Finding]:
    """Yield a finding for each benchmark that is on this machine, and for what generating takes."""
    config: EvaluateModelConfig = check.config
    yield from check_generation(check, config.sampling, f"{check.key}.sampling", config.prompt == "chat")
    room = len(check.machine.gpus) or check.machine.cores
    if config.executor != "ray" and config.workers > room:
        what = "GPU(s)" if check.machine.gpus else "core(s)"
        message = f"{config.workers} workers share {room} {what}, each with the whole model"
        yield warning("devices", f"{check.key}.workers", message, f"set {check.key}.workers={room}")
    for choice in config.benchmarks:
        if paths := check.local(f"benchmark:{choice.name}"):
            key = f"{check.key}.benchmarks.{choice.name}"
            yield from guarded("data", key, lambda k=key, c=choice, p=paths: _check_benchmark(k, config, c, p))


def _check_benchmark(
    key: str, config: EvaluateModelConfig, choice: BenchmarkChoice, paths: list[Path]
) -> Iterator[Finding]:
    from ladle.evaluation.benchmark import load_items, take

    items = take(load_items(choice.definition(), paths, choice.split), *config.part(choice), choice.name)
    yield ok("data", key, f"{len(items)} items with question and answer")


def shrink(config: EvaluateConfig, shrinking: Shrinking) -> EvaluateConfig:
    """Return few items with short completions."""
    sampling = shrink_sampling(config.sampling, shrinking)
    whole = [choice.model_copy(update={"limit": None, "start": None}) for choice in config.benchmarks]
    few = {"benchmarks": whole, "limit": ITEMS, "start": 0, "end": -1}
    return config.model_copy(update={"sampling": sampling, "workers": 1, "executor": "processes", **few})


def extrapolate(check: Checkup, measured: Measured) -> Estimate:
    """Return the rehearsal's time times the new tokens; unknown for benchmarks whose items are not known."""

    def tokens(config: EvaluateModelConfig) -> int:
        limits = [(config.part(one)[0], one.definition().items) for one in config.benchmarks]
        counts = [min(limit or 10**9, items or limit or 0) for limit, items in limits]
        return 0 if 0 in counts else sum(counts) * config.sampling.samples * config.sampling.max_new_tokens

    full, small = tokens(check.config), tokens(measured.config)
    return Estimate(measured.seconds * full / small if full and small else None)


STAGE = Stage(
    "evaluate",
    run,
    run_shard,
    version=2,
    volatile=("*_metrics.json", "final_result.json"),
    wants_gpus=True,
    section=EvaluateConfig,
    check=check,
    shrink=shrink,
    extrapolate=extrapolate,
    peek=deferred("ladle.excerpts:evaluation_prompts"),
)
