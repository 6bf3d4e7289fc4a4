"""Keep the better of two models, a round's result and its parent: `model/`, and the scores in `gate.json`.

Both attempt the same problems, which neither training nor test data holds. The result replaces its parent if it solves
significantly more of them: several rounds that each may be worse by luck would add up to a worse model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ladle.artifacts.files import link_or_copy, pretty_json
from ladle.evaluation.statistics import mcnemar_p_value
from ladle.log import get_logger
from ladle.models.load import model_dir
from ladle.rollouts.config import GateConfig
from ladle.rollouts.rollout import attempt_problems, read_problems
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)


def run(config: GateConfig, inputs: Inputs, out: Path) -> StageResult:
    """Let `parent` and `candidate` attempt `prompts`, and keep one of them."""
    problems = read_problems(config.prompts, inputs["prompts"], "gate")
    models = {role: model_dir(inputs[role][0]) for role in ("parent", "candidate")}
    is_right = {}
    for role, model in models.items():
        attempts = attempt_problems(config, problems, model, out / f".{role}", "gate")
        is_right[role] = [attempt.verdict == "correct" for attempt in attempts]
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
    shutil.rmtree(out / "model", ignore_errors=True)
    shutil.copytree(models[kept], out / "model", copy_function=lambda file, to: link_or_copy(Path(file), Path(to)))
    (out / "gate.json").write_text(pretty_json(verdict), encoding="utf-8")
    for role in models:
        shutil.rmtree(out / f".{role}")
    return StageResult({"attempts": len(pairs), "kept_candidate": int(kept == "candidate")}, scores)
