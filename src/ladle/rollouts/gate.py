"""Keep the better of two models, a round's result and its parent: `model/`, and the scores in `gate.json`.

Both attempt the same problems, which neither training nor test data holds. The result replaces its parent if it solves
significantly more of them: several rounds that each may be worse by luck would add up to a worse model.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ladle.artifacts.files import pretty_json
from ladle.data.questions.problems import rows_of_problems
from ladle.data.sources.templates import fill
from ladle.evaluation.metrics import mcnemar_p_value
from ladle.generation.complete import discard_logs
from ladle.log import get_logger
from ladle.models.load import model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.rollouts.attempts import Attempt, Problem, attempt_problems
from ladle.rollouts.config import GateConfig
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)


def run(config: GateConfig, inputs: Inputs, out: Path) -> StageResult:
    """Let `parent` and `candidate` attempt `prompts`, and keep one of them."""
    source = config.prompts
    problems = [
        Problem(
            number, fill(source.question, row, "gate.prompts.question"), fill(source.answer, row, "gate.prompts.answer")
        )
        for number, row in enumerate(
            rows_of_problems(source.dataset, inputs["prompts"], source.split, source.first, source.limit), source.first
        )
    ]
    models = {role: model_dir(inputs[role][0]) for role in ("parent", "candidate")}
    is_right = {role: _solves(config, problems, model, out / f".{role}") for role, model in models.items()}
    scores = {role: sum(right) / len(right) for role, right in is_right.items()}
    pairs = list(zip(is_right["parent"], is_right["candidate"], strict=True))
    only_parent, only_candidate = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    p_value = mcnemar_p_value(only_parent, only_candidate)
    kept = "candidate" if only_candidate >= only_parent and p_value <= config.significance else "parent"
    verdict = {
        "kept": kept,
        "accuracy": scores,
        "attempts": len(pairs),
        "only_parent": only_parent,
        "only_candidate": only_candidate,
        "mcnemar_p": p_value,
    }
    logger.info(
        "gate: parent %.1f %%, candidate %.1f %% of %d attempts (p = %.2g): keeping the %s",
        100 * scores["parent"], 100 * scores["candidate"], len(pairs), p_value, kept,
    )  # fmt: skip
    _copy_model(models[kept], out / "model")
    (out / "gate.json").write_text(pretty_json(verdict), encoding="utf-8")
    for role in models:
        shutil.rmtree(out / f".{role}", ignore_errors=True)
    return StageResult({"attempts": len(pairs), "kept_candidate": int(kept == "candidate")}, scores)


def _solves(config: GateConfig, problems: list[Problem], model: Path, folder: Path) -> list[bool]:
    attempts: list[Attempt] = attempt_problems(config, problems, model, load_fast_tokenizer(model), folder, "gate")
    discard_logs(folder)
    return [attempt.verdict == "correct" for attempt in attempts]


def _copy_model(source: Path, target: Path) -> None:
    """Copy a model folder, by hard links where the file system has them."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
