"""The exceptions that end a command, and the exit code each one maps to.

Exit codes: 0 done, 1 a check failed, 2 the user's input is wrong, 70 a bug, 75 stopped and resumable, 130 interrupted.
"""

from __future__ import annotations

EXIT_CHECK_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_BUG = 70
EXIT_RESUMABLE = 75
EXIT_INTERRUPTED = 130


class LadleError(Exception):
    """An expected outcome: printed as one message, without a traceback."""

    exit_code = EXIT_CHECK_FAILED


class UserError(LadleError, ValueError):
    """The user's input is wrong; a ValueError, so that pydantic adds where in the recipe it is.

    Args:
        problem: what happened, with the value seen.
        fix: the command, key or edit that fixes it.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}: {self.fix}"


class BadRow(UserError):
    """A row that cannot be used. Stages that read many rows leave it out, counted by its problem, up to a cap."""

    def __init__(self, problem: str, fix: str = "correct the row, or take it out") -> None:
        super().__init__(problem, fix)


class CheckFailed(LadleError):
    """A check that the user requested, or that a stage makes of its own work, failed."""


class Preempted(LadleError):
    """The run was asked to stop, saved what it had, and resumes when started again."""

    exit_code = EXIT_RESUMABLE
