"""`ladle run RECIPE --rehearse`."""

from __future__ import annotations

from pathlib import Path

from ladle import display


def rehearse(recipe: Path, overrides: list[str], root: Path, price_per_gpu_hour: float) -> None:
    """Rehearse a recipe and print the table of what its stages took and will take."""
    from ladle.doctor.machine import gpus_of_machine
    from ladle.doctor.model import config_of_base
    from ladle.doctor.references import references_of
    from ladle.rehearsal.extrapolate import table
    from ladle.rehearsal.rehearse import rehearse as run

    gpus = len(gpus_of_machine())
    done = run(recipe, overrides, root, gpus)
    base = next((one for one in references_of(done.recipe) if one.key == "base.model"), None)
    lines = table(done, price_per_gpu_hour, gpus, config_of_base(done.recipe, base))
    display.print_rehearsal(lines, list(done.changes), done.seconds, gpus)
