"""What a worker process may do: so much CPU time for one answer, so much memory, no file to write, no code to run.

The reader never hands text to Python; the audit hook (PEP 578) is there so that no library can either. It refuses to
compile or run anything that does not come from a module's file, to start processes, to open sockets and to write files.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

GRACE_SECONDS = 0.3
"""CPU time after the limit at which the kernel ends a process whose Python code does not notice the signal."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED_EVENTS = frozenset(
    f"{module}.{event}"
    for module, events in {
        "os": "system exec fork forkpty posix_spawn spawn remove rename rmdir mkdir link symlink truncate chmod chown",
        "subprocess": "Popen",
        "pty": "spawn",
        "socket": "__new__ connect bind sendto",
        "ctypes": "dlopen dlsym",
        "pickle": "find_class",
    }.items()
    for event in events.split()
)


class CpuLimitReached(BaseException):
    """The CPU time for one answer is used up; not an `Exception`, so that no library swallows it."""


class CodeRefused(RuntimeError):
    """Something tried to compile or run text, or to reach out of the process."""


def limit_memory(mebibytes: int) -> None:
    """Bound the address space of this process, and let it leave neither files nor a core dump."""
    size = mebibytes * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise `CpuLimitReached` after so much CPU time; the kernel ends the process `GRACE_SECONDS` later.

    CPU time, not wall time, so that a busy machine does not change a verdict. The first signal is seen between two
    steps of the interpreter; one long step, such as a product of huge integers, is left to the second.
    """
    armed = True

    def stop(number: int, frame: FrameType | None) -> None:
        if armed:
            raise CpuLimitReached

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds + GRACE_SECONDS)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


class CodeGuard:
    """The audit hook, once installed, stays until the process ends; `paused` is for importing libraries."""

    def __init__(self) -> None:
        self._active = True
        self._refused = ""

    def install(self) -> None:
        """Refuse code from now on."""
        sys.dont_write_bytecode = True
        sys.addaudithook(self._audit)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let modules be imported; some make classes out of text while they are."""
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        check = _CHECKS.get(event)
        if event in _REFUSED_EVENTS or check is not None and check(arguments):
            self._refused = event
            raise CodeRefused(f"{event} is refused while grading")

    def take_refused(self) -> str:
        """Return the event refused last since the previous call, the empty string if none was."""
        refused, self._refused = self._refused, ""
        return refused


def _is_foreign_source(arguments: tuple[Any, ...]) -> bool:
    filename = arguments[1]
    return not (isinstance(filename, str) and filename.endswith(".py"))


def _is_foreign_code(arguments: tuple[Any, ...]) -> bool:
    code = arguments[0]
    return not (isinstance(code, CodeType) and code.co_filename.endswith(".py"))


def _is_writing(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return bool(isinstance(mode, str) and set(mode) & set("wax+") or isinstance(flags, int) and flags & _WRITING)


_CHECKS: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "compile": _is_foreign_source,
    "exec": _is_foreign_code,
    "open": _is_writing,
}
