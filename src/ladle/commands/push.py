"""`ladle push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def push(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A model, a dataset or an evaluation.")],
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository; made where there is none.")],
    results: Annotated[
        list[Path] | None, typer.Option("--results", help="An evaluation whose scores the card shows; may be repeated.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option("--message", help="The commit's message.")] = None,
) -> None:
    """Put an artifact on the Hub, with a card, in one commit.

    Examples:

      ladle push runs/quickstart/kto/kto-0123456789ab me/my-model --results runs/quickstart/evaluate/kto-0123456789ab

      ladle push runs/quickstart/mix/mix-0123456789ab me/my-mixture --private
    """
    from ladle.push import push as upload

    sys.stdout.write(f"{upload(artifact, repo_id, results or [], private, message)}\n")
