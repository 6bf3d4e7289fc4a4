"""A run while it is built, as a table; read from its folder, so that it is the same from anywhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ladle.artifacts.files import readable_size
from ladle.errors import CheckFailed
from ladle.log import IS_SHOWN, get_logger

if TYPE_CHECKING:
    from rich.console import Console

    from ladle.api import Run, StepStatus

logger = get_logger(__name__)

LOOK_EVERY, IDLE = 5.0, 15.0
"""Seconds between two looks from elsewhere, and those without anybody at work until a run is given up: between two
steps it holds no lock for a moment."""
COLUMNS, ROOM_BELOW = ("step", "state", "seconds", "left_seconds", "job", "progress"), 12
"""What is shown of a step; and lines of a terminal that steps leave to long cells, the summary and earlier messages."""


def make_table(rows: Sequence[Any]) -> Any:
    """Return dataclasses or dicts as a table: a column for each field with values, in the unit of the field's name."""
    from rich.table import Table

    fields = [row if isinstance(row, dict) else vars(row) for row in rows]
    cells = [{name: _cell(name, value) for name, value in row.items()} for row in fields]
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = [name for name in cells[0] if any(row[name] for row in cells)]
    for name in names:
        table.add_column(name.replace("_bytes", "").replace("_seconds", "_time").replace("_", " "), overflow="fold")
    for row in cells:
        table.add_row(*(row[name] for name in names))
    return table


def _cell(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return readable_size(value) if value else ""
    if name.endswith("seconds") and value is not None:
        return f"{value:,.1f} s" if value < 3600 else f"{value / 3600:,.2f} h"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(value)
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)


def summary(rows: Sequence[StepStatus]) -> str:
    """Return in a line how many steps are done and about how long the others take, as far as that is known."""
    left = [row.left_seconds for row in rows if row.state != "done"]
    known = sum(filter(None, left))
    time_left = f", {'at least' if None in left else 'about'} {_cell('seconds', known)} left" if known else ""
    return f"{len(rows) - len(left)} of {len(rows)} steps are done{time_left}"


def draw(rows: Sequence[StepStatus], console: Console) -> Any:
    """Return for rich the steps that a terminal has room for, from those that were done last, and the summary."""
    from rich.console import Group

    room = max(3, console.height - ROOM_BELOW)
    first = max(0, min(sum(row.state == "done" for row in rows) - 2, len(rows) - room))
    shown = [{name: getattr(row, name) for name in COLUMNS} for row in rows[first : first + room]]
    return Group(make_table(shown), summary(rows))


@contextmanager
def shown(run: Run, every_seconds: float = 1.0, asks_slurm: bool = False) -> Iterator[None]:
    """Show a run on the terminal meanwhile, if there is one.

    Args:
        run: what is built, here or elsewhere.
        every_seconds: between two looks.
        asks_slurm: show what became of its jobs too.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    rows: list[StepStatus] = []
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)

    def look() -> Any:
        rows[:] = run.status(rows, asks_slurm)
        return draw(rows, console)

    os.environ[IS_SHOWN] = "1"
    rate = 1 / every_seconds
    try:
        with Live(get_renderable=look, console=console, refresh_per_second=rate, transient=True, redirect_stdout=False):
            yield
    finally:
        del os.environ[IS_SHOWN]


def follow(run: Run) -> None:
    """Show a run that others build until it is done: a table on a terminal, elsewhere lines.

    Raises:
        CheckFailed: nobody builds it any more.
    """
    from ladle.launch.queue import SLURM_FOLDER, jobs_in_queue

    rows, slurm, seen_at = run.status(), run.workspace.folder / SLURM_FOLDER, time.monotonic()
    with shown(run, LOOK_EVERY, asks_slurm=True):
        while any(row.state != "done" for row in rows):
            if IS_SHOWN not in os.environ:
                logger.info("; ".join([summary(rows), *(text for row in rows for text in row.progress)]))
            has_jobs = any(row.job for row in rows)
            is_queued = jobs_in_queue(slurm) or (has_jobs and shutil.which("squeue") is None)
            if is_queued or any(row.state == "running" for row in rows):
                seen_at = time.monotonic()
            if time.monotonic() - seen_at > IDLE:
                raise CheckFailed(f"nobody builds this run any more, and {summary(rows)}: run it again to go on")
            time.sleep(LOOK_EVERY)
            rows = run.status(rows)
    logger.info(summary(rows))
