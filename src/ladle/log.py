"""Messages and progress: rich on a terminal, plain lines in a log file. Everything goes to standard error."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PLAIN_LINE_EVERY_SECONDS, SILENT_AT_MOST_SECONDS = 10.0, 60.0
ENOUGH_TO_ESTIMATE = 0.05
"""Of what is left after the first report: the share that must be done before the time left is shown."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; `configure` decides where its lines go."""
    return logging.getLogger(name)


def configure(quiet: bool = False) -> None:
    """Send Ladle's messages to standard error, one line each; errors only if `quiet`.

    All processes of a group but the first are quiet.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    ladle = logging.getLogger("ladle")
    ladle.handlers[:] = [handler]
    ladle.propagate = False
    ladle.setLevel(logging.ERROR if quiet else logging.INFO)
    logging.getLogger("DeepSpeed").addFilter(_say_on_standard_error)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels it could download, when imported


def _say_on_standard_error(record: logging.LogRecord) -> bool:
    """Take over DeepSpeed's errors, which it would print among a command's results; its warnings are of no use here."""
    if record.levelno >= logging.ERROR:
        get_logger("ladle.deepspeed").error(record.getMessage())
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
    ladle.handlers += handlers
    try:
        yield said
    finally:
        ladle.handlers[:] = [one for one in ladle.handlers if one not in handlers]


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
        self.show()

    def say(self, note: str) -> None:
        """Show a note behind the rate from now on."""
        self.note = f", {note}"
        self.show()

    def show(self) -> None:
        """Log a line, unless the last one is new."""
        if time.monotonic() - self.printed >= PLAIN_LINE_EVERY_SECONDS:
            self.print()

    def print(self) -> None:
        """Log a line."""
        self.printed = time.monotonic()
        total = "" if self.total is None else f"/{self.total:,}"
        get_logger(__name__).info("%s: %s%s %s", self.description, f"{self.done:,}", total, self.text)

    def show_life(self, over: threading.Event) -> None:
        """Log a line a minute while nothing is reported, until the work is over."""
        while not over.wait(SILENT_AT_MOST_SECONDS):
            if time.monotonic() - self.printed >= SILENT_AT_MOST_SECONDS:
                self.print()

    @property
    def text(self) -> str:
        """The unit, the speed, the note and, once a twentieth of the work shows it, the time left."""
        now, since_first = time.monotonic(), self.done - self.first_done
        rate = since_first / max(now - self.first_at, 1e-9) or self.done / max(now - self.started, 1e-9)
        left = ""
        if self.total is not None and since_first > ENOUGH_TO_ESTIMATE * (self.total - self.first_done):
            left = f", {(self.total - self.done) / rate:,.0f} s left"
        return f"{self.unit}, {rate:,.{1 if rate >= 1 else 3}f}/s{self.note}{left}"


@contextmanager
def progress(total: int | None, description: str, unit: str = "items") -> Iterator[ProgressBar]:
    """Show how far a piece of work is, with rate and time left.

    Args:
        total: units of work in all, or None where that is not known.
        description: what is being done.
        unit: what is counted, in the plural.
    """
    bar = ProgressBar(total, description, unit)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}")
        with Progress(*columns, console=Console(stderr=True), transient=True) as display:
            task = display.add_task(description, total=total, text=unit)
            bar.show = lambda: display.update(task, completed=bar.done, text=bar.text)
            yield bar
        return
    over = threading.Event()
    threading.Thread(target=bar.show_life, args=(over,), daemon=True).start()
    try:
        yield bar
    finally:
        over.set()
    if bar.printed != bar.started:  # it took so long that there was a line before
        bar.print()
