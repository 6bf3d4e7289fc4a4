"""The report: one self-contained HTML page about a run, and the same in short as Markdown, from its artifacts' records.

What was gained, with intervals and paired tests; right and wrong answers side by side; data, trainings, soups and
gates; where each part came from; and how to make it again.
"""

from __future__ import annotations

import json
import shlex
from functools import partial
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from ladle.artifacts.record import read_record
from ladle.config import Config, execution
from ladle.reporting import collect
from ladle.reporting.collect import Records
from ladle.stage import Inputs, StageResult

TEMPLATES = {"index.html": "page.html", "report.md": "report.md"}


class ReportConfig(Config):
    """The page that shows the run."""

    title: str | None = None
    """Heading of the page; unset is the recipe's name."""
    price_per_hour: float | None = Field(None, ge=0)
    """Price of an hour of the machine, in any currency, for the cost of the run; unset leaves it out."""
    recipe: SkipJsonSchema[str] = execution("")
    """The recipe with its overrides, as YAML, which is not a key of it."""


def run(config: ReportConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write `index.html` and `report.md` from the artifacts of every other step; each role is a step's name."""
    records = {name: (paths[0], read_record(paths[0])) for name, paths in inputs.items()}
    for name, text in render(config, records).items():
        (out / name).write_text(text, encoding="utf-8")
    return StageResult({"steps": len(records)}, collect.collect_scores(records))


def render(config: ReportConfig, records: Records) -> dict[str, str]:
    """Return the texts of the report's files, by name."""
    from jinja2 import Environment, StrictUndefined

    from ladle.reporting.latex import split_formulas

    facts = _facts(config, records)
    texts = {}
    for name, template in TEMPLATES.items():
        settings: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
        environment = Environment(autoescape=name.endswith(".html"), undefined=StrictUndefined, **settings)
        environment.filters["pretty"] = partial(json.dumps, indent=2, ensure_ascii=False)
        environment.filters["formulas"] = split_formulas
        source = files("ladle.reporting").joinpath(template).read_text(encoding="utf-8")
        texts[name] = environment.from_string(source).render(facts)
    return texts


def _facts(config: ReportConfig, records: Records) -> dict[str, Any]:
    """Return what the templates show."""
    from ladle.reporting.plots import draw_lengths, draw_pass_at_k

    scores, compared = collect.collect_scores(records), collect.compare_models(records)
    changes = collect.changes_of(compared)
    shown = [dict(zip(one[:2], one.folders, strict=True)) for one in compared if one.is_gain]
    shown += [{name: folder} for name, folder, _ in collect.of_stage(records, "evaluate")]
    commands = [record["command"] for _, record in records.values()]
    seconds = sum(record["timings"]["seconds"] for _, record in records.values())
    mixtures = collect.details_of(records, "mix", "mixture.json")
    return {
        "config": config,
        "records": {name: record for name, (_, record) in records.items()},
        "scores": scores,
        "means": collect.mean_scores(scores) if len(scores) > 1 else {},
        "pass_charts": {benchmark: draw_pass_at_k(models) for benchmark, models in scores.items()},
        "gains": [change for change, one in zip(changes, compared, strict=True) if one.is_gain],
        "changes": changes,
        "changes_by_benchmark": collect.changes_of(compared, by_benchmark=True) if len(scores) > 1 else [],
        "answers": collect.collect_answers(shown[0] if shown else {}),
        "mixtures": [mixture | {"chart": draw_lengths(mixture["sources"])} for mixture in mixtures],
        "trainings": collect.collect_trainings(records),
        "soups": collect.details_of(records, "soup", "merge_info.json"),
        "gates": collect.details_of(records, "gate", "gate.json"),
        "lineage": collect.collect_lineage(records),
        "machines": collect.group_by_machine(records),
        "seconds": seconds,
        "cost": None if config.price_per_hour is None else config.price_per_hour * seconds / 3600,
        "commands": list(dict.fromkeys(shlex.join([_program(one[0]), *one[1:]]) for one in commands)),
    }


def _program(path: str) -> str:
    name = PurePath(path).name
    return "ladle" if name == "__main__.py" else name  # as `python -m ladle` names itself
