"""The card (README.md) of a pushed model, dataset or evaluation: what it is, how it was made, how it scored.

Written from records alone: the artifact's own, those it was made from, and those of its evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ladle.artifacts.record import RECORD_NAME, read_record

_KINDS = {
    "pretrain": "continued pretraining",
    "kto": "Kahneman-Tversky alignment (KTO, arXiv 2402.01306)",
    "gate": "the better of a round's model and the one before it",
    "soup": "a model soup",
    "fetch": "an imported or fresh model",
    "mix": "a mixture of tokenized documents, packed into rows",
    "prefer": "labelled completions (prompt, completion, label)",
    "rollout": "completions labelled by a verifier (prompt, completion, label)",
    "evaluate": "completions and verdicts on benchmarks",
}


def make_card(folder: Path, kind: str, evaluations: list[Path], metadata: dict[str, Any]) -> str:
    """Return the README.md of an artifact.

    Args:
        folder: the artifact.
        kind: `model` or `dataset`.
        evaluations: artifacts of the evaluate stage whose scores the card shows.
        metadata: more of the card's YAML header, such as `configs` of a dataset.
    """
    chain = _lineage(folder)
    record = chain[-1]
    header: dict[str, Any] = {"tags": ["ladle"], **metadata}
    if kind == "model":
        header |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    inputs = [item for one in chain for items in one["inputs"].values() for item in items]
    for key, hub_kind in (("base_model" if kind == "model" else "models", "model"), ("datasets", "dataset")):
        if roots := sorted({item["repo_id"] for item in inputs if item.get("hub") == hub_kind}):
            header[key] = roots
    scores = [
        (name, f"{one['accuracy']:.1%}", f"{one['low']:.1%} to {one['high']:.1%}", one["n"])
        for place in evaluations
        for name, one in read_record(place)["metrics"].items()
    ]
    steps = [(one["name"], _KINDS.get(one["stage"], one["stage"]), f"`{one['fingerprint'][:12]}`") for one in chain]
    counters = "".join(f"- {name}: {value}\n" for name, value in record["counters"].items())
    settings = json.dumps(record["identity"]["config"], indent=2, sort_keys=True, ensure_ascii=False)
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=True, allow_unicode=True)}---\n",
        f"# {record['name']}\n\nThis is {_KINDS.get(record['stage'], 'the result of a step')}, made with Ladle.\n",
        _table("Scores", ("benchmark", "accuracy", "95 % interval", "n"), scores),
        _table("Made from", ("step", "what", "fingerprint"), steps),
        f"## Settings\n\n{counters}\n```json\n{settings}\n```\n",
        f"`record.json` holds every file's blake3 and these settings; its digest is `{record['digest']}`.\n",
    ]
    return "\n".join(part for part in parts if part)


def _lineage(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the artifact and of all it was made from, parents first, as far as they are on disk."""
    found: dict[Path, dict[str, Any]] = {}

    def visit(place: Path) -> None:
        place = place.resolve()
        if place in found or not (place / RECORD_NAME).is_file():
            return
        record = read_record(place)
        for item in (item for items in record["inputs"].values() for item in items if "artifact" in item):
            visit(place.parent / item["artifact"])
        found[place] = record

    visit(folder)
    return list(found.values())


def _table(title: str, header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
    if not rows:
        return ""
    lines = [header, tuple("---" for _ in header), *rows]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
