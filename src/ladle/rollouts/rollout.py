"""Sample completions of the policy and label each by its answer: `train.jsonl` of prompt, completion, label.

Right is True, wrong is False; an answer that cannot be read or graded in time is dropped and counted, never called
wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ladle.data.questions.problems import rows_of_problems
from ladle.data.sources.templates import fill
from ladle.executors import Shard
from ladle.generation.complete import discard_logs
from ladle.log import get_logger
from ladle.models.load import model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.rollouts.attempts import Attempt, Problem, attempt_problems, count_verdicts, sample_attempts
from ladle.rollouts.config import PromptSource, RolloutConfig
from ladle.rollouts.corruption import corrupt_answers
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)


def run(config: RolloutConfig, inputs: Inputs, out: Path) -> StageResult:
    """Sample `config.samples` completions of each problem in `prompts` from the policy in `model`, and grade them."""
    model = model_dir(inputs["model"][0])
    problems = _read_problems(config.prompts, inputs["prompts"])
    attempts = attempt_problems(config, problems, model, load_fast_tokenizer(model), out, "rollout")
    counters = count_verdicts(attempts, len(problems) * config.samples)
    rows = [_row(attempt, attempt.verdict == "correct") for attempt in attempts if _is_decided(attempt)]
    if config.corrupt_answers:
        rows += _corrupted_rows(attempts, config.seed, counters)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "train.jsonl").write_text(lines, encoding="utf-8")
    discard_logs(out)
    return StageResult(counters | {"rows": len(rows)}, {"accuracy": counters["correct"] / counters["samples"]})


def run_shard(config: RolloutConfig, inputs: Inputs, out: Path, shard: Shard) -> None:
    """Sample one share of the completions; `run` finds them finished."""
    model = model_dir(inputs["model"][0])
    problems = _read_problems(config.prompts, inputs["prompts"])
    sample_attempts(config, problems, model, load_fast_tokenizer(model), out, "rollout", shard)


def _read_problems(source: PromptSource, paths: list[Path]) -> list[Problem]:
    rows = rows_of_problems(source.dataset, paths, source.split, source.first, source.limit)
    return [
        Problem(
            number,
            fill(source.question, row, "rollout.prompts.question"),
            fill(source.answer, row, "rollout.prompts.answer"),
        )
        for number, row in enumerate(rows, start=source.first)
    ]


def _is_decided(attempt: Attempt) -> bool:
    return attempt.verdict in ("correct", "wrong")


def _corrupted_rows(attempts: list[Attempt], seed: int, counters: dict[str, int]) -> list[dict[str, Any]]:
    corrupted = corrupt_answers(attempts, seed)
    counters["corrupted"] = len(corrupted)
    logger.warning(
        "%d undesirable completions are right ones with another answer put in (rollout.corrupt_answers): "
        "the policy may learn to spot the change instead of the error; prefer its own wrong attempts",
        len(corrupted),
    )
    return [_row(attempt, False) for attempt in corrupted]


def _row(attempt: Attempt, label: bool) -> dict[str, Any]:
    if attempt.prompt.messages is None:
        return {"prompt": attempt.prompt.text, "completion": attempt.completion, "label": label}
    return {
        "prompt": list(attempt.prompt.messages),
        "completion": [{"role": "assistant", "content": attempt.completion}],
        "label": label,
    }
