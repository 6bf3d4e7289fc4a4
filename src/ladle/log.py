"""Messages and progress: rich on a terminal, plain lines in a log file. Everything goes to standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PLAIN_LINE_EVERY_SECONDS = 10.0


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
    bitsandbytes = logging.getLogger("bitsandbytes")
    bitsandbytes.setLevel(logging.ERROR)  # it warns of kernels it could download, whenever imported


def _say_on_standard_error(record: logging.LogRecord) -> bool:
    """Take over what DeepSpeed would print among a command's results; its warnings, of no use here, as details."""
    level = record.levelno if record.levelno >= logging.ERROR else logging.DEBUG
    get_logger("ladle.deepspeed").log(level, record.getMessage())
    return False


class ProgressBar:
    """Counts finished units of work and logs a line about them every ten seconds."""

    def __init__(self, total: int | None, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done, self.note = 0, ""
        self.started = self.printed = time.monotonic()

    def advance(self, count: int) -> None:
        """Add `count` finished units."""
        self.done += count
        self._show()

    def say(self, note: str) -> None:
        """Show a note behind the rate from now on."""
        self.note = f", {note}"
        self._show()

    def finish(self) -> None:
        """Log the last state, if the work took so long that there was a line before."""
        if self.printed != self.started:
            self._print()

    @property
    def rate(self) -> str:
        """Units per second since the start."""
        return f"{self.done / max(time.monotonic() - self.started, 1e-9):,.1f}/s"

    def _show(self) -> None:
        if time.monotonic() - self.printed >= PLAIN_LINE_EVERY_SECONDS:
            self._print()

    def _print(self) -> None:
        self.printed = time.monotonic()
        count, left = f"{self.done:,}", ""
        if self.total is not None:
            count += f"/{self.total:,}"
        if self.total and self.done:
            left = f", {(self.printed - self.started) * (self.total / self.done - 1):.0f} s left"
        line = f"{self.description}: {count} {self.unit}, {self.rate}{self.note}{left}"
        get_logger(__name__).info("%s", line)


class _TerminalBar(ProgressBar):
    """The same as a bar of `display`, rich's Progress."""

    def __init__(self, display: Any, total: int | None, description: str, unit: str) -> None:
        super().__init__(total, description, unit)
        self.display, self.task = display, display.add_task(description, total=total, rate="", note="")

    def _show(self) -> None:
        self.display.update(self.task, completed=self.done, rate=self.rate, note=self.note)


@contextmanager
def progress(total: int | None, description: str, unit: str = "items") -> Iterator[ProgressBar]:
    """Show how far a piece of work is, with rate and time left.

    Args:
        total: units of work in all, or None where that is not known.
        description: what is being done.
        unit: what is counted, in the plural.
    """
    if not sys.stderr.isatty():
        bar = ProgressBar(total, description, unit)
        yield bar
        bar.finish()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn(f"{unit} {{task.fields[rate]}}{{task.fields[note]}}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield _TerminalBar(display, total, description, unit)
