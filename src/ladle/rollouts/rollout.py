"""Attempts of models at problems with known answers: what a policy learns from, and what a gate decides by."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from blake3 import blake3

from ladle.artifacts.files import link_or_copy, pretty_json
from ladle.data.formats import fill, read_conversation
from ladle.data.rows import take_rows
from ladle.errors import BadRow, UserError
from ladle.evaluation.benchmark import Item
from ladle.evaluation.evaluate import (
    Prompt,
    Task,
    complete_tasks,
    find_unreadable,
    grade_samples,
    load_examples,
    make_chat_prompt,
    make_prompt,
)
from ladle.evaluation.statistics import mcnemar_p_value
from ladle.executors import WHOLE, Shard
from ladle.generation.complete import Completed, discard_samples
from ladle.generation.request import Sample, mean_entropy
from ladle.grading.grade import GraderConfig
from ladle.log import get_logger
from ladle.models.chat import set_template_date
from ladle.models.config import choose_dtype, model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.rollouts.config import AttemptConfig, GateConfig, PromptSource, RolloutConfig
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)

VERDICTS = ("correct", "wrong", "unparsed", "timeout")


@dataclass(frozen=True)
class Attempt:
    """One graded completion."""

    problem: Item
    prompt: Prompt
    sample: Sample
    verdict: str


def run(config: RolloutConfig, inputs: Inputs, out: Path) -> StageResult:
    """Let the policy in `model` attempt `prompts`; write `train.jsonl` of prompt, completion, and label.

    Right is True, wrong is False; an answer that cannot be read or graded in time is dropped and counted, never called
    wrong. A row has the token ids of its prompt and those that were sampled, where the backend says them, and how it
    ended: `eos`, `stop` or `length`.
    """
    attempts, unreadable = attempt_problems(config, inputs, model_dir(inputs["model"][0]), out, "rollout")
    verdicts = Counter(attempt.verdict for attempt in attempts)
    counters = {"samples": len(attempts), **{verdict: verdicts[verdict] for verdict in VERDICTS}}
    counters["cut"] = sum(attempt.sample.finish_reason == "length" for attempt in attempts)
    counters["gold_unreadable"] = unreadable
    labelled = [attempt for attempt in attempts if attempt.verdict in ("correct", "wrong")]
    if config.keep == "mixed":
        mixed = keep_mixed(labelled)
        counters["solved_always_or_never"] = len(labelled) - len(mixed)
        labelled = mixed
    if config.corrupt_answers:
        corrupted = corrupt_answers(attempts, config.seed)
        labelled += corrupted
        counters["corrupted"] = len(corrupted)
        logger.warning(
            "%d undesirable completions are right ones with another answer put in (rollout.corrupt_answers): "
            "the policy may learn to spot the change instead of the error; prefer its own wrong attempts",
            len(corrupted),
        )
    lines = [json.dumps(_row(attempt), ensure_ascii=False) + "\n" for attempt in labelled]
    (out / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    discard_samples(out)
    metrics = {"accuracy": verdicts["correct"] / len(attempts), "dtype": choose_dtype(config.dtype)}
    metrics["prompt"] = attempts[0].prompt.style
    metrics["token_entropy"] = mean_entropy(attempt.sample for attempt in attempts)
    return StageResult(counters | {"rows": len(lines)}, metrics)


def run_shard(config: RolloutConfig, inputs: Inputs, out: Path, shard: Shard) -> None:
    """Sample one share of the completions; `run` finds them finished."""
    _complete(config, inputs, model_dir(inputs["model"][0]), out, "rollout", shard)


def run_gate(config: GateConfig, inputs: Inputs, out: Path) -> StageResult:
    """Let `parent` and `candidate` attempt `prompts`, and keep the better: `model/`, and the scores in `gate.json`.

    The candidate replaces its parent if it solves significantly more of the problems, which neither training nor test
    data holds: several rounds that each may be worse by luck would add up to a worse model.
    """
    models = {role: model_dir(inputs[role][0]) for role in ("parent", "candidate")}
    is_right = {}
    for role, model in models.items():
        attempts, _ = attempt_problems(config, inputs, model, out / f".{role}", "gate")
        is_right[role] = [attempt.verdict == "correct" for attempt in attempts]
        config = config.model_copy(update={"prompt": attempts[0].prompt.style})  # the candidate's is its parent's
    scores = {role: fmean(right) for role, right in is_right.items()}
    pairs = Counter(zip(is_right["parent"], is_right["candidate"], strict=True))
    only_parent, only_candidate = pairs[True, False], pairs[False, True]
    p_value = mcnemar_p_value(only_parent, only_candidate)
    kept = "candidate" if only_candidate >= only_parent and p_value <= config.significance else "parent"
    verdict = {"kept": kept, "accuracy": scores, "attempts": pairs.total(), "mcnemar_p": p_value}
    verdict |= {"only_parent": only_parent, "only_candidate": only_candidate}
    text = "gate: parent %.1f %%, candidate %.1f %% of %d attempts (p = %.2g): keeping the %s"
    logger.info(text, 100 * scores["parent"], 100 * scores["candidate"], pairs.total(), p_value, kept)
    shutil.rmtree(out / "model", ignore_errors=True)
    shutil.copytree(models[kept], out / "model", copy_function=lambda file, to: link_or_copy(Path(file), Path(to)))
    (out / "gate.json").write_text(pretty_json(verdict), encoding="utf-8")
    for role in models:
        shutil.rmtree(out / f".{role}")
    metrics = scores | {"dtype": choose_dtype(config.dtype), "prompt": config.prompt}
    return StageResult({"attempts": pairs.total(), "kept_candidate": int(kept == "candidate")}, metrics)


def read_problems(source: PromptSource, paths: list[Path], section: str) -> list[Item]:
    """Return the problems of a source; their numbers enter the samples' seeds and are the same in every run.

    Args:
        source: which rows, and how one becomes a question and an answer.
        paths: where they are.
        section: the recipe's section, for errors.

    Raises:
        UserError: a row without a question or an answer.
    """
    problems = []
    rows = take_rows(source.dataset, paths, source.split, source.first, source.limit)
    for number, row in enumerate(rows, start=source.first):
        where = f"problem {number} of {source.dataset}"
        try:
            kept: dict[str, Any] = {}
            if source.messages is None:
                question = fill(source.question, row, f"{section}.prompts.question")
            else:
                turns, arguments = read_conversation(row.get(source.messages), row)
                question, kept = str(turns[-1].get("content", "")), {"messages": turns, **arguments}
            answer = fill(source.answer, row, f"{section}.prompts.answer")
        except BadRow as fault:
            raise UserError(f"{where}: {fault.problem}", fault.fix) from fault
        if not question.strip() or not answer.strip():
            problem = f"{where} has no {'answer' if question.strip() else 'question'}"
            raise UserError(problem, f"correct the row, or {section}.prompts")
        problems.append(Item(number, question, answer, row=kept))
    return problems


def attempt_problems(
    config: AttemptConfig, inputs: Inputs, model: Path, folder: Path, purpose: str
) -> tuple[list[Attempt], int]:
    """Return `config.samples` graded completions of each problem whose known answer can be read, in order.

    Args:
        config: prompt and sampling.
        inputs: `prompts`, the problems; and `examples` for few-shot prompts.
        model: the model's folder.
        folder: where finished samples are kept across crashes until `discard_samples`.
        purpose: what the samples are for; it enters their seeds and the progress line.

    Returns:
        The attempts, and how many problems were left out because their answer cannot be read.
    """
    task, done, unreadable = _complete(config, inputs, model, folder, purpose)
    samples = task.samples(done, config.samples)
    grades = grade_samples(task, samples, GraderConfig())
    attempts = [
        Attempt(problem, prompt, sample, str(grade.verdict))
        for problem, prompt, *several in zip(task.items, task.prompts, samples, grades, strict=True)
        for sample, grade in zip(*several, strict=True)
    ]
    return attempts, unreadable


def _complete(
    config: AttemptConfig, inputs: Inputs, model: Path, folder: Path, purpose: str, shard: Shard = WHOLE
) -> tuple[Task, Completed, int]:
    problems = read_problems(config.prompts, inputs["prompts"], purpose)
    examples = load_examples(config.examples, inputs.get("examples", []), config.few_shot)
    tokenizer = load_fast_tokenizer(model)
    takes_turns = config.prompts.messages is not None
    style = config.prompt or ("chat" if tokenizer.chat_template or takes_turns else "cot")
    if style == "chat":
        set_template_date(tokenizer, config.template_date, f"{purpose}.template_date")
    unreadable = find_unreadable(problems, GraderConfig(), purpose, "their problems are left out")
    problems = [problem for problem in problems if problem.idx not in unreadable]
    prompts = [
        make_chat_prompt(tokenizer, **one.row)
        if takes_turns
        else make_prompt(style, one.question, tokenizer, examples, config.system_prompt)
        for one in problems
    ]
    task, dtype = Task(purpose, problems, prompts), choose_dtype(config.dtype)
    return task, complete_tasks([task], config, config, model, tokenizer, folder, shard, dtype), len(unreadable)


def keep_mixed(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the attempts at problems that some of them solved and some did not."""
    seen = {(attempt.problem.idx, attempt.verdict) for attempt in attempts}
    return [one for one in attempts if {(one.problem.idx, verdict) for verdict in ("correct", "wrong")} <= seen]


def corrupt_answers(attempts: Sequence[Attempt], seed: int) -> list[Attempt]:
    """Return, for each problem with right attempts and no wrong one, its first right one with another answer in it.

    A fallback where a policy makes no errors of its own to learn from. The answer's last occurrence in the completion
    is replaced by the answer of another problem, picked by a keyed hash; a completion that does not spell the known
    answer as it is written is left out, and so is one that the verifier does not find wrong afterwards.
    """
    by_problem: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        by_problem[attempt.problem.idx].append(attempt)
    answers = sorted({attempt.problem.gold for attempt in attempts})
    found = []
    for number, group in by_problem.items():
        right = [attempt for attempt in group if attempt.verdict == "correct"]
        if not right or any(attempt.verdict == "wrong" for attempt in group):
            continue
        answer = right[0].problem.gold
        before, is_spelled, after = right[0].sample.text.rpartition(answer)
        others = [other for other in answers if other != answer]
        if is_spelled and others:
            place = int.from_bytes(blake3(f"{seed} {number}".encode()).digest(8), "little") % len(others)
            sample = replace(right[0].sample, text=before + others[place] + after, token_ids=None)
            found.append(replace(right[0], sample=sample, verdict="wrong"))
    # the last occurrence may be inside another number, and another problem's answer may be equal
    task = Task("rollout", [one.problem for one in found], [one.prompt for one in found])
    grades = grade_samples(task, [[one.sample] for one in found], GraderConfig())
    return [one for one, (grade,) in zip(found, grades, strict=True) if str(grade.verdict) == "wrong"]


def _row(attempt: Attempt) -> dict[str, Any]:
    prompt, sample = attempt.prompt, attempt.sample
    texts: dict[str, Any] = {"prompt": prompt.text, "completion": sample.text}
    if prompt.messages is not None:
        texts = {name: value for name, value in attempt.problem.row.items() if name != "messages"}
        texts |= {"prompt": prompt.messages, "completion": [{"role": "assistant", "content": sample.text}]}
    ids = {} if sample.token_ids is None else {"prompt_ids": prompt.ids, "completion_ids": sample.token_ids}
    return {**texts, "label": attempt.verdict == "correct", **ids, "finish_reason": sample.finish_reason}
