"""Messages and progress: rich on a terminal, plain lines in a log file. Everything goes to standard error."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PLAIN_LINE_EVERY_SECONDS, SILENT_AT_MOST_SECONDS = 10.0, 60.0
ENOUGH_TO_ESTIMATE = 0.05
"""Of what is left after the first report: the share that must be done before the time left is shown."""


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


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that gets each warning of Ladle once, while it is shown as ever."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in said:
                said.append(record.getMessage())

    ladle = logging.getLogger("ladle")
    handlers: list[logging.Handler] = [Collector(logging.WARNING)]
    if not ladle.hasHandlers() and logging.lastResort is not None:  # Python's own, which any handler puts out of work
        handlers.append(logging.lastResort)
    for handler in handlers:
        ladle.addHandler(handler)
    try:
        yield said
    finally:
        for handler in handlers:
            ladle.removeHandler(handler)


class ProgressBar:
    """Counts finished units of work and logs a line about them every ten seconds.

    The speed counts from the first report on: that one brings what an earlier run had finished, or, of work that is
    done side by side, the quickest item, after which no estimate can be made of the others.
    """

    def __init__(self, total: int | None, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done, self.note = 0, ""
        self.started = self.printed = time.monotonic()
        self.first_done, self.first_at = 0, self.started

    def advance(self, count: int) -> None:
        """Add `count` finished units."""
        if not self.done:
            self.first_done, self.first_at = count, time.monotonic()
        self.done += count
        self._show()

    def say(self, note: str) -> None:
        """Show a note behind the rate from now on."""
        self.note = f", {note}"
        self._show()

    def show_life(self, over: threading.Event) -> None:
        """Log a line a minute while nothing is reported, until the work is over."""
        while not over.wait(SILENT_AT_MOST_SECONDS):
            if time.monotonic() - self.printed >= SILENT_AT_MOST_SECONDS:
                self._print()

    def finish(self) -> None:
        """Log the last state, if the work took so long that there was a line before."""
        if self.printed != self.started:
            self._print()

    @property
    def text(self) -> str:
        """The unit, the speed, the note and, once a twentieth of the work shows it, the time left."""
        now, since_first = time.monotonic(), self.done - self.first_done
        rate = since_first / max(now - self.first_at, 1e-9) or self.done / max(now - self.started, 1e-9)
        left = ""
        if self.total is not None and since_first > ENOUGH_TO_ESTIMATE * (self.total - self.first_done):
            left = f", {(self.total - self.done) / rate:,.0f} s left"
        return f"{self.unit}, {rate:,.{1 if rate >= 1 else 3}f}/s{self.note}{left}"

    def _show(self) -> None:
        if time.monotonic() - self.printed >= PLAIN_LINE_EVERY_SECONDS:
            self._print()

    def _print(self) -> None:
        self.printed = time.monotonic()
        total = "" if self.total is None else f"/{self.total:,}"
        get_logger(__name__).info("%s: %s%s %s", self.description, f"{self.done:,}", total, self.text)


class _TerminalBar(ProgressBar):
    """The same as a bar of `display`, rich's Progress."""

    def __init__(self, display: Any, total: int | None, description: str, unit: str) -> None:
        super().__init__(total, description, unit)
        self.display, self.task = display, display.add_task(description, total=total, text=unit)

    def _show(self) -> None:
        self.display.update(self.task, completed=self.done, text=self.text)


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
        over = threading.Event()
        threading.Thread(target=bar.show_life, args=(over,), daemon=True).start()
        try:
            yield bar
        finally:
            over.set()
        bar.finish()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield _TerminalBar(display, total, description, unit)
