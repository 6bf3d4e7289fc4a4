"""One line of the doctor: what was looked at, how it stands, and the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from ladle.errors import LadleError, UserError


class Level(StrEnum):
    """How a finding stands."""

    OK = "ok"
    WARNING = "warning"
    """The run will go, and not as one would wish."""
    ERROR = "error"
    """The run will stop, sooner or later."""


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        level: how it stands.
        family: data, model, arguments, disk, memory, devices or hub.
        subject: what was looked at: a key of the recipe, a step, a device.
        message: what was seen.
        fix: the command, key or edit that mends it; empty where all is well.
    """

    level: Level
    family: str
    subject: str
    message: str
    fix: str = ""


def ok(family: str, subject: str, message: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, family, subject, message)


def warning(family: str, subject: str, message: str, fix: str) -> Finding:
    """Return a finding of what will go, and not as one would wish."""
    return Finding(Level.WARNING, family, subject, message, fix)


def error(family: str, subject: str, message: str, fix: str) -> Finding:
    """Return a finding of what will stop the run."""
    return Finding(Level.ERROR, family, subject, message, fix)


def guarded(family: str, subject: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; a foreseen error that the stage itself would end with is a finding too."""
    try:
        yield from list(check())
    except UserError as fault:
        yield error(family, subject, fault.problem, fault.fix)
    except LadleError as fault:
        yield error(family, subject, str(fault), "mend it, and run `ladle doctor` again")
