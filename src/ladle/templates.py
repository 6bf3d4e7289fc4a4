"""Recipes to start from, and a Slurm profile, as they are shipped with the package."""

from __future__ import annotations

import re
from pathlib import Path

from ladle.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
TEMPLATES = {
    "quickstart": "quickstart.yaml",
    "continue-pretraining": "templates/continue-pretraining.yaml",
    "thumbs-to-kto": "templates/thumbs-to-kto.yaml",
    "sft-then-kto": "templates/sft-then-kto.yaml",
    "evaluate-my-model": "templates/evaluate-my-model.yaml",
    "my-benchmark": "templates/my-benchmark.yaml",
    "one-gpu-7b-qlora": "one-gpu/qlora-7b.yaml",
    "slurm": "templates/slurm.yaml",
}


def write_template(name: str, out: Path | str | None = None) -> Path:
    """Copy a template to `out` (unset: `NAME.yaml` here), with its own path in the commands of its comments.

    Raises:
        UserError: there is no such template, or the file exists.
    """
    if name not in TEMPLATES:
        raise UserError(f"there is no template {name!r}", f"use one of {', '.join(TEMPLATES)}")
    path = Path(out or f"{name}.yaml")
    if path.exists():
        raise UserError(f"{path} exists", "name another file with --out, or remove it")
    text = (RECIPES / TEMPLATES[name]).read_text(encoding="utf-8").replace(f"recipes/{TEMPLATES[name]}", str(path))
    schema = (RECIPES / "schema.json").as_uri()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"(?<=\$schema=)\S+", lambda _: schema, text, count=1), encoding="utf-8")
    return path
