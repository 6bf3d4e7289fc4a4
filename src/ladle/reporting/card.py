"""The card (README.md) of a pushed model, dataset or evaluation: what it is, how it was made, how it scored.

Written from records alone: the artifact's own, those it was made from, and those of its evaluations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ladle.artifacts.record import read_record

Record = dict[str, Any]

_KINDS = {
    "pretrain": "continued pretraining",
    "kto": "Kahneman-Tversky alignment (KTO, arXiv 2402.01306)",
    "soup": "a model soup",
    "fetch": "an imported or fresh model",
    "mix": "a mixture of tokenized documents, packed into rows",
    "prefer": "labelled completions (prompt, completion, label)",
    "rollout": "completions labelled by a verifier (prompt, completion, label)",
    "evaluate": "completions and verdicts on benchmarks",
}


def lineage(folder: Path) -> list[tuple[Path, Record]]:
    """Return the artifact and all it was made from, parents first, each once, as far as they are on disk."""
    found: dict[Path, Record] = {}

    def visit(place: Path) -> None:
        place = place.resolve()
        if place in found or not (place / "record.json").is_file():
            return
        record = read_record(place)
        for item in (item for items in record["inputs"].values() for item in items if "artifact" in item):
            visit(place.parent / item["artifact"])
        found[place] = record

    visit(folder)
    return list(found.items())


def make_card(folder: Path, kind: str, evaluations: list[Path], metadata: dict[str, Any]) -> str:
    """Return the README.md of an artifact.

    Args:
        folder: the artifact.
        kind: `model` or `dataset`.
        evaluations: artifacts of the evaluate stage whose scores the card shows.
        metadata: more of the card's YAML header, such as `configs` of a dataset.
    """
    chain = lineage(folder)
    record = chain[-1][1]
    header = {"tags": ["ladle"], **_roots(chain, kind), **metadata}
    if kind == "model":
        header |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    scores = [row for place in evaluations for row in _score_rows(read_record(place))]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=True, allow_unicode=True)}---\n",
        f"# {record['name']}\n\nThis is {_KINDS[record['stage']]}, made with Ladle.\n",
        _table("Scores", ("benchmark", "accuracy", "95 % interval", "n"), scores),
        _table("Made from", ("step", "what", "fingerprint"), [_step_row(one) for _, one in chain]),
        _settings(record),
        f"`record.json` holds every file's blake3 and these settings; its digest is `{record['digest']}`.\n",
    ]
    return "\n".join(part for part in parts if part)


def _roots(chain: list[tuple[Path, Record]], kind: str) -> dict[str, Any]:
    """Return the Hub repositories that everything goes back to, under the names that cards use."""
    hub = [i for _, record in chain for items in record["inputs"].values() for i in items if "hub" in i]
    models = sorted({item["repo_id"] for item in hub if item["hub"] == "model"})
    datasets = sorted({item["repo_id"] for item in hub if item["hub"] == "dataset"})
    named = {"base_model" if kind == "model" else "models": models, "datasets": datasets}
    return {name: values for name, values in named.items() if values}


def _score_rows(record: Record) -> list[tuple[str, ...]]:
    return [
        (name, f"{one['accuracy']:.1%}", f"{one['low']:.1%} to {one['high']:.1%}", str(one["n"]))
        for name, one in record["metrics"].items()
    ]


def _step_row(record: Record) -> tuple[str, ...]:
    stage: str = record["stage"]
    return record["name"], _KINDS.get(stage, stage), f"`{record['fingerprint'][:12]}`"


def _settings(record: Record) -> str:
    counters = "".join(f"- {name}: {value}\n" for name, value in record["counters"].items())
    settings = json.dumps(record["identity"]["config"], indent=2, sort_keys=True, ensure_ascii=False)
    return f"## Settings\n\n{counters}\n```json\n{settings}\n```\n"


def _table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [header, tuple("---" for _ in header), *rows]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
