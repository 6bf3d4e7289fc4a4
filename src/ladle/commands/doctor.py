"""`ladle doctor`."""

from __future__ import annotations

import typer

from ladle import display
from ladle.commands.options import DEFAULT_ROOT, AsJson, Overrides, RecipePath, Root
from ladle.errors import EXIT_CHECK_FAILED


def doctor(recipe: RecipePath, overrides: Overrides = None, root: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Look for everything that would stop or spoil a run: data, models, arguments, disk, memory, devices, the Hub.

    Each line is ok, a warning or an error, with the fix. Exits 1 if there is an error.

    Examples:

      ladle doctor recipes/tiny.yaml

      ladle doctor recipes/quickstart.yaml pretrain.trainer.per_device_train_batch_size=4096 --json
    """
    from ladle.doctor.diagnose import diagnose
    from ladle.doctor.machine import look_at_machine

    found = diagnose(recipe, list(overrides or []), root, look_at_machine())
    display.print_findings(found, as_json)
    if any(finding.level == "error" for finding in found):
        raise typer.Exit(EXIT_CHECK_FAILED)
