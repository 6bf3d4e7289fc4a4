"""Attempts at problems: completions sampled from a model and graded against the known answers.

Rollouts keep the attempts as preference data; a gate only counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from ladle.errors import CheckFailed
from ladle.evaluation.config import PromptStyle
from ladle.evaluation.prompts import Prompt, encode_prompt, make_prompt
from ladle.executors import WHOLE, Shard, make_executor
from ladle.generation.backends import make_generator
from ladle.generation.complete import complete
from ladle.generation.request import Sample, make_request, sample_seed
from ladle.grading.config import GraderConfig
from ladle.grading.grade import Grader, Pair
from ladle.rollouts.config import AttemptConfig

VERDICTS = ("correct", "wrong", "unparsed", "timeout")


@dataclass(frozen=True)
class Problem:
    """A question with its known answer; `number` names it in seeds and is the same in every run."""

    number: int
    question: str
    answer: str


@dataclass(frozen=True)
class Attempt:
    """One graded completion."""

    problem: Problem
    prompt: Prompt
    completion: str
    verdict: str


def attempt_problems(
    config: AttemptConfig,
    problems: Sequence[Problem],
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    purpose: str,
) -> list[Attempt]:
    """Return `config.samples` graded completions of each problem, in order.

    Args:
        config: prompt and sampling.
        problems: what to attempt.
        model: the model's folder.
        tokenizer: the model's.
        folder: where finished samples are kept across crashes until `discard_logs`.
        purpose: what the samples are for; it enters their seeds and the progress line.
    """
    prompts, samples = sample_attempts(config, problems, model, tokenizer, folder, purpose)
    places = [int(name.partition("/")[0]) for name in samples]
    pairs = [
        Pair(gold=problems[place].answer, answer=sample.text)
        for place, sample in zip(places, samples.values(), strict=True)
    ]
    with Grader(GraderConfig()) as grader:
        verdicts = [str(grade.verdict) for grade in grader.grade_completions(pairs)]
    return [
        Attempt(problems[place], prompts[place], pair.answer, verdict)
        for place, pair, verdict in zip(places, pairs, verdicts, strict=True)
    ]


def sample_attempts(
    config: AttemptConfig,
    problems: Sequence[Problem],
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    purpose: str,
    shard: Shard = WHOLE,
) -> tuple[list[Prompt], dict[str, Sample]]:
    """Return each problem's prompt, and the samples by `<problem>/<number>`: all of them, or one share."""
    style = cast(PromptStyle, config.prompt)  # the recipe's schema leaves the name open
    prompts = [make_prompt(style, problem.question, tokenizer) for problem in problems]
    requests = [
        make_request(
            config,
            f"{index}/{sample}",
            encode_prompt(prompts[index], tokenizer),
            sample_seed(config.seed, purpose, problem.number, sample),
            prompts[index].stop,
        )
        for index, problem in enumerate(problems)
        for sample in range(config.samples)
    ]
    make = partial(make_generator, config, model, tokenizer)
    executor = make_executor(config.executor, config.workers, on_gpus=True)
    return prompts, complete(requests, make, folder, executor, config.workers, purpose, shard).samples


def count_verdicts(attempts: Sequence[Attempt], num_samples: int) -> dict[str, int]:
    """Return how many attempts had each verdict.

    Raises:
        CheckFailed: an attempt is missing.
    """
    verdicts = Counter(attempt.verdict for attempt in attempts)
    if sum(verdicts.values()) != num_samples:
        raise CheckFailed(f"{num_samples} completions were asked for and {sum(verdicts.values())} graded")
    return {"samples": num_samples, **{verdict: verdicts[verdict] for verdict in VERDICTS}}
