"""Sample completions of the policy and label each by its answer: `train.jsonl` of prompt, completion, label.

Right is True, wrong is False; an answer that cannot be read or graded in time is dropped and counted, never called
wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from ladle.data.read_rows import read_rows
from ladle.data.templates import fill
from ladle.errors import CheckFailed, UserError
from ladle.evaluation.config import PromptStyle
from ladle.evaluation.prompts import Prompt, encode_prompt, make_prompt
from ladle.evaluation.rollout_config import PromptSource, RolloutConfig
from ladle.executors import SerialExecutor
from ladle.generation.backends import make_generator
from ladle.generation.complete import complete, discard_logs
from ladle.generation.request import Sample, make_request, sample_seed
from ladle.grading.config import GraderConfig
from ladle.grading.grade import Grader, Pair
from ladle.models.load import model_dir
from ladle.models.tokenizer import load_fast_tokenizer


def run(config: RolloutConfig, inputs: dict[str, list[Path]], out: Path) -> dict[str, Any]:
    """Sample `config.samples` completions of each problem in `prompts` from the policy in `model`, and grade them."""
    model = model_dir(inputs["model"][0])
    tokenizer = load_fast_tokenizer(model)
    problems = _read_problems(config.prompts, inputs["prompts"])
    style = cast(PromptStyle, config.prompt)  # the recipe's schema leaves the name open
    prompts = [make_prompt(style, question, tokenizer) for question, _ in problems]
    requests = [
        make_request(
            config,
            f"{index}/{sample}",
            encode_prompt(prompt, tokenizer),
            sample_seed(config.seed, "rollout", index, sample),
            prompt.stop,
        )
        for index, prompt in enumerate(prompts)
        for sample in range(config.samples)
    ]
    samples = complete(
        requests, partial(make_generator, config, model, tokenizer), out, SerialExecutor(), description="rollouts"
    ).samples
    rows, verdicts = _label(samples, problems, prompts)
    (out / "train.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    discard_logs(out)
    return _summarise(rows, verdicts, len(samples))


def _read_problems(source: PromptSource, paths: list[Path]) -> list[tuple[str, str]]:
    """Return (question, known answer) of each problem."""
    problems = []
    for row in islice(read_rows(paths, source.split), source.limit):
        question = fill(source.question, row, "rollout.prompts.question")
        problems.append((question, fill(source.answer, row, "rollout.prompts.answer")))
    if not problems:
        raise UserError(f"{source.dataset} holds no problems", "name another rollout.prompts.dataset or split")
    return problems


def _label(
    samples: dict[str, Sample], problems: list[tuple[str, str]], prompts: list[Prompt]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    names = list(samples)
    indices = [int(name.partition("/")[0]) for name in names]
    pairs = [
        Pair(gold=problems[index][1], answer=samples[name].text) for name, index in zip(names, indices, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    verdicts: Counter[str] = Counter()
    with Grader(GraderConfig()) as grader:
        for name, index, grade in zip(names, indices, grader.grade_completions(pairs), strict=True):
            verdicts[str(grade.verdict)] += 1
            if grade.verdict in ("correct", "wrong"):
                rows.append(_row(prompts[index], samples[name].text, grade.verdict == "correct"))
    return rows, verdicts


def _row(prompt: Prompt, completion: str, label: bool) -> dict[str, Any]:
    if prompt.messages is None:
        return {"prompt": prompt.text, "completion": completion, "label": label}
    return {
        "prompt": list(prompt.messages),
        "completion": [{"role": "assistant", "content": completion}],
        "label": label,
    }


def _summarise(rows: list[dict[str, Any]], verdicts: Counter[str], num_samples: int) -> dict[str, Any]:
    if sum(verdicts.values()) != num_samples:
        raise CheckFailed(f"{num_samples} completions were sampled and {sum(verdicts.values())} graded")
    counters = {
        "samples": num_samples,
        **{verdict: verdicts[verdict] for verdict in ("correct", "wrong", "unparsed", "timeout")},
    }
    return {"counters": counters | {"rows": len(rows)}, "metrics": {"accuracy": verdicts["correct"] / num_samples}}
