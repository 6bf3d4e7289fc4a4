"""Messages and progress: rich on a terminal, plain lines in a log file. Everything goes to standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_LINE_EVERY_SECONDS = 10.0


class ProgressBar(Protocol):
    """Counts finished units of work."""

    def advance(self, count: int) -> None:
        """Add `count` finished units."""
        ...

    def say(self, note: str) -> None:
        """Show a note behind the rate from now on."""
        ...


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; `configure` decides where its lines go."""
    return logging.getLogger(name)


def configure(verbose: bool = False, quiet: bool = False) -> None:
    """Send Ladle's messages to standard error, one line each.

    Args:
        verbose: debugging messages too.
        quiet: errors only, for every process of a group but the first.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    ladle = logging.getLogger("ladle")
    ladle.handlers[:] = [handler]
    ladle.propagate = False
    ladle.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("DeepSpeed").addFilter(_say_on_standard_error)
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it warns of kernels it could download, whenever imported


def _say_on_standard_error(record: logging.LogRecord) -> bool:
    """Take over what DeepSpeed would print among a command's results; as a detail, for its warnings are of no use."""
    get_logger("ladle.deepspeed").log(
        record.levelno if record.levelno >= logging.ERROR else logging.DEBUG, record.getMessage()
    )
    return False


@contextmanager
def progress(total: int | None, description: str, unit: str = "items") -> Iterator[ProgressBar]:
    """Show how far a piece of work is, with rate and time left.

    Args:
        total: units of work in all, or None where that is not known.
        description: what is being done.
        unit: what is counted, in the plural.
    """
    if sys.stderr.isatty():
        with _rich_bar(total, description, unit) as bar:
            yield bar
        return
    bar = _PlainBar(total, description, unit)
    yield bar
    bar.finish()


@contextmanager
def _rich_bar(total: int | None, description: str, unit: str) -> Iterator[ProgressBar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(description, total=total, rate="", note="")
        started = time.monotonic()

        class _Bar:
            def advance(self, count: int) -> None:
                done = display.tasks[0].completed + count
                display.update(task, advance=count, rate=_rate(done, time.monotonic() - started))

            def say(self, note: str) -> None:
                display.update(task, note=note)

        yield _Bar()


class _PlainBar:
    def __init__(self, total: int | None, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = 0
        self.note = ""
        self.started = self.printed = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self.printed >= PLAIN_LINE_EVERY_SECONDS:
            self._print()

    def say(self, note: str) -> None:
        self.note = f", {note}"

    def finish(self) -> None:
        if self.printed != self.started:
            self._print()

    def _print(self) -> None:
        self.printed = time.monotonic()
        seconds = self.printed - self.started
        of_total = "" if self.total is None else f"/{self.total:,}"
        left = "" if not (self.total and self.done) else f", {seconds * (self.total / self.done - 1):.0f} s left"
        get_logger(__name__).info(
            "%s: %s%s %s, %s%s%s",
            self.description,
            f"{self.done:,}",
            of_total,
            self.unit,
            _rate(self.done, seconds),
            self.note,
            left,
        )


def _rate(done: float, seconds: float) -> str:
    return f"{done / seconds:,.1f}/s" if seconds > 0 else ""
