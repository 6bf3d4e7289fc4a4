"""A grading process: reads pairs as JSON lines from standard input, writes one verdict for each to standard output.

Run as `python -m ladle.grading.worker SETTINGS`. It is started once and grades thousands of answers; the pool ends it
where a limit demands, and starts another. JSON and not pickle, so that nothing it says can make its parent run code.

It has so much CPU time for one answer, so much memory, no file to write and no code to run. The reader never hands text
to Python; the audit hook (PEP 578) is there so that no library can either. It refuses to compile or run anything that
does not come from a module's file, to start processes, to open sockets and to write files.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import CodeType, FrameType
from typing import Any, BinaryIO

from ladle.grading.judge import Algebra, judge
from ladle.grading.normalise import CHINESE_NUMERAL
from ladle.grading.verdict import LOADING, READY, Judgement, Pair, Verdict

MAX_REASON_CHARACTERS = 200


def main() -> None:
    """Serve pairs until standard input ends."""
    settings = json.loads(sys.argv[1])
    # The pipes to the parent are for verdicts alone; whatever a library prints goes nowhere.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    limit_memory(settings["memory_mebibytes"])
    grading = _Grading(settings["cpu_seconds"], settings["rounding_digits"], replies)
    grading.reply(READY)
    for line in requests:
        judgement = grading.judge(Pair(*json.loads(line)))
        grading.reply([judgement.verdict, judgement.reason[:MAX_REASON_CHARACTERS]])


class _Grading:
    """Judges pairs within the limits; loads what most runs never need when first needed, uncharged to the answer."""

    def __init__(self, cpu_seconds: float, rounding_digits: int, replies: BinaryIO) -> None:
        self._cpu_seconds = cpu_seconds
        self._rounding_digits = rounding_digits
        self._replies = replies
        self._guard = CodeGuard()
        self._guard.install()

    def reply(self, message: Any) -> None:
        """Write a message for the parent."""
        self._replies.write(json.dumps(message).encode() + b"\n")
        self._replies.flush()

    def judge(self, pair: Pair) -> Judgement:
        """Return the verdict on a pair, whatever happens on the way."""
        if CHINESE_NUMERAL.search(pair.gold + pair.answer):
            self._load("cn2an")
        started = time.process_time()
        left = self._within_limits(lambda: judge(pair, self._rounding_digits), self._cpu_seconds)
        if isinstance(left, Judgement):
            return left
        spent = time.process_time() - started
        symbolic = self._load("ladle.grading.symbolic")
        self._guard.refused = ""
        judged = self._within_limits(lambda: symbolic.judge_algebra(left), max(self._cpu_seconds - spent, 0.01))
        assert isinstance(judged, Judgement)
        if self._guard.refused and judged.verdict is Verdict.WRONG:
            # sympy swallowed the refusal on its way to "not equal", which then is not a finding
            return Judgement(Verdict.UNPARSED, f"sympy may not use {self._guard.refused} to compare it")
        return judged

    def _load(self, name: str) -> Any:
        if name not in sys.modules:
            self.reply(LOADING)
            with self._guard.paused():
                getattr(import_module(name), "warm_up", bool)()
            self.reply(READY)
        return sys.modules[name]

    def _within_limits(self, work: Callable[[], Judgement | Algebra], cpu_seconds: float) -> Judgement | Algebra:
        try:
            with cpu_limit(cpu_seconds):
                return work()
        except CpuLimitReached:
            return Judgement(Verdict.TIMEOUT, f"more than {self._cpu_seconds:g} s of CPU time")
        except MemoryError:
            return Judgement(Verdict.TIMEOUT, "more memory than a worker may use")
        except RecursionError:
            return Judgement(Verdict.UNPARSED, "nested too deep")
        except Exception as error:  # noqa: BLE001 - the boundary: whatever a library meets in an answer is its own verdict
            return Judgement(Verdict.UNPARSED, f"{type(error).__name__}: {error}")


# Limits.

# CPU time after the limit at which the kernel ends a process whose Python code does not notice the signal.
GRACE_SECONDS = 0.3


class CpuLimitReached(BaseException):
    """The CPU time for one answer is used up; not an `Exception`, so that no library swallows it."""


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


# Code.

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED_EVENTS = """os.system os.exec os.fork os.forkpty os.posix_spawn os.spawn os.remove os.rename os.rmdir os.mkdir
os.link os.symlink os.truncate os.chmod os.chown subprocess.Popen pty.spawn socket.__new__ socket.connect socket.bind
socket.sendto ctypes.dlopen ctypes.dlsym pickle.find_class"""
# For each audit event that may be refused, whether it is with these arguments.
_IS_REFUSED: Mapping[str, Callable[..., bool]] = {
    "compile": lambda source, filename: not (isinstance(filename, str) and filename.endswith(".py")),
    "exec": lambda code: not (isinstance(code, CodeType) and code.co_filename.endswith(".py")),
    "open": lambda path, mode, flags: bool(set(mode or "") & set("wax+") or (flags or 0) & _WRITING),
} | dict.fromkeys(_REFUSED_EVENTS.split(), lambda *arguments: True)


class CodeRefused(RuntimeError):
    """Something tried to compile or run text, or to reach out of the process."""


class CodeGuard:
    """The audit hook, once installed, stays until the process ends; `paused` is for importing libraries."""

    def __init__(self) -> None:
        self._active = True
        self.refused = ""
        """The event that was refused last."""

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
        if self._active and event in _IS_REFUSED and _IS_REFUSED[event](*arguments):
            self.refused = event
            raise CodeRefused(f"{event} is refused while grading")


if __name__ == "__main__":
    main()
