"""Messages and progress, as plain lines on standard error.

While a step is built, each process also keeps a small file beside its folder up to date with how far its work is:
`ladle.live` shows those, on the terminal of the run and anywhere else that sees the disk.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLAIN_LINE_EVERY_SECONDS, SILENT_AT_MOST_SECONDS, REPORT_EVERY_SECONDS = 10.0, 60.0, 0.5
BLOCKS, BAR_WIDTH = "▁▂▃▄▅▆▇█", 20
"""Heights of a curve; characters of a bar."""
REPORTS_TO = "LADLE_REPORTS_TO"
"""In the environment of a build, which its processes inherit: what the names of their reports begin with."""
IS_SHOWN = "LADLE_IS_SHOWN"
"""Set in the environment while the reports are shown, so that there are no plain lines of progress."""
ENOUGH_TO_ESTIMATE = 0.05
"""Of what is left after the first report: the share that must be done before the time left is shown."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; `configure` decides where its lines go."""
    return logging.getLogger(name)


def configure(quiet: bool = False) -> None:
    """Send Ladle's messages to standard error, one line each; errors only if `quiet`.

    All processes of a group but the first are quiet.
    """
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    ladle = logging.getLogger("ladle")
    ladle.handlers[:] = [handler]
    ladle.propagate = False
    ladle.setLevel(logging.ERROR if quiet else logging.INFO)
    logging.getLogger("DeepSpeed").addFilter(_say_on_standard_error)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels it could download, when imported


class _StandardError(logging.StreamHandler[Any]):
    """Writes lines to what is standard error at the time, so that they scroll above a live display."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


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
    """Counts finished units of work, logs a line about them every ten seconds, and keeps its report up to date.

    The speed counts from the first advance on: that one brings what an earlier run had finished, or, of work that is
    done side by side, the quickest item, after which no estimate can be made of the others.
    """

    def __init__(self, total: int | None, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done, self.note = 0, ""
        self.curve = ""
        self.started = self.printed = time.monotonic()
        self.first_done, self.first_at = 0, self.started
        prefix = os.environ.get(REPORTS_TO)
        self.file = Path(f"{prefix}.{os.getpid()}.progress") if prefix else None
        self.report()

    def advance(self, count: int) -> None:
        """Add `count` finished units."""
        if not self.done:
            self.first_done, self.first_at = count, time.monotonic()
        self.done += count
        self.show()

    def say(self, note: str, curve: Sequence[float] = ()) -> None:
        """Show a note behind the rate from now on, and in reports a curve, such as that of a loss."""
        low, high = min(curve, default=0.0), max(curve, default=0.0)
        heights = [(value - low) / ((high - low) or 1.0) for value in curve]
        self.note, self.curve = f", {note}", "".join(BLOCKS[round(height * 7)] for height in heights)
        self.show()

    def show(self) -> None:
        """Report, and log a line, unless the last ones are new."""
        now = time.monotonic()
        if now - self.reported >= REPORT_EVERY_SECONDS:
            self.report()
        if now - self.printed >= PLAIN_LINE_EVERY_SECONDS:
            self.print()

    def report(self) -> None:
        """Write how far the work is to this process's file, if it works for a build."""
        self.reported = time.monotonic()
        if self.file is not None:
            new, full = self.file.with_suffix(".tmp"), round(BAR_WIDTH * self.done / (self.total or math.inf))
            bar = "█" * full + "░" * (BAR_WIDTH - full)
            new.write_text(json.dumps(f"{bar} {self.text} {self.curve}"), encoding="utf-8")
            new.replace(self.file)

    def print(self) -> None:
        """Log a line, unless reports are shown."""
        self.printed = time.monotonic()
        if IS_SHOWN not in os.environ:
            get_logger(__name__).info("%s", self.text)

    def show_life(self, over: threading.Event) -> None:
        """Log a line a minute while nothing is reported, until the work is over."""
        while not over.wait(SILENT_AT_MOST_SECONDS):
            if time.monotonic() - self.printed >= SILENT_AT_MOST_SECONDS:
                self.print()

    @property
    def text(self) -> str:
        """What is being done, how far it is, the speed, the note and, once a twentieth shows it, the time left."""
        now, since_first = time.monotonic(), self.done - self.first_done
        rate = since_first / max(now - self.first_at, 1e-9) or self.done / max(now - self.started, 1e-9)
        total = left = ""
        if self.total is not None:
            total = f"/{self.total:,}"
            if since_first > ENOUGH_TO_ESTIMATE * (self.total - self.first_done):
                left = f", {(self.total - self.done) / rate:,.0f} s left"
        unit = f"{self.unit}, {rate:,.{1 if rate >= 1 else 3}f}/s"
        return f"{self.description}: {self.done:,}{total} {unit}{self.note}{left}"


@contextmanager
def progress(total: int | None, description: str, unit: str = "items") -> Iterator[ProgressBar]:
    """Show how far a piece of work is, with rate and time left.

    Args:
        total: units of work in all, or None where that is not known.
        description: what is being done.
        unit: what is counted, in the plural.
    """
    bar = ProgressBar(total, description, unit)
    over = threading.Event()
    threading.Thread(target=bar.show_life, args=(over,), daemon=True).start()
    try:
        yield bar
    finally:
        over.set()
        if bar.file is not None:
            bar.file.unlink(missing_ok=True)
    if bar.printed != bar.started:  # it took so long that there was a line before
        bar.print()
