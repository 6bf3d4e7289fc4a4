"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values that replace the recipe's, such as pretrain.trainer.max_steps=10."
    ),
]
Root = Annotated[Path, typer.Option("--root", help="Where runs are kept; a recipe's run is ROOT/<recipe name>.")]
Out = Annotated[Path | None, typer.Option("--out", help="The folder that becomes the artifact.")]
ConfigPath = Annotated[
    Path, typer.Option("--config", help="A recipe; overrides are relative to this stage's section of it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_ROOT = Path("runs")
