"""Settings of the grader: its limits, its tolerance for rounding, and where it keeps its verdicts."""

from __future__ import annotations

from pydantic import Field

from ladle.config import Config, execution


class GraderConfig(Config):
    """How one answer is graded and what it may cost.

    CPU time is the limit that decides; the wall limit only catches a process that a loaded machine starves or that no
    signal reaches, so that the load of the machine does not change a verdict.
    """

    cpu_seconds: float = Field(default=0.5, gt=0, le=60)
    """CPU time for one answer, in seconds; past it the verdict is `timeout`."""

    wall_seconds: float = Field(default=3.0, gt=0, le=600)
    """Hard limit on the wall time of one answer, in seconds; its first try and the lone retry share it."""

    memory_mebibytes: int = Field(default=1024, ge=256)
    """Address space of one worker process, in MiB."""

    max_characters: int = Field(default=2000, ge=1, le=4000)
    """Longer answers are `unparsed` unless they equal the gold text; the longest gold of the six benchmarks has 210."""

    rounding_digits: int = Field(default=5, ge=2, le=30)
    """A decimal stands for an exact value that rounds or truncates to it from this many significant digits on.

    Five accept 3.1416 for pi and refuse 1.414 for the root of 2; upstream's relative tolerance of 1e-4 lies between.
    """

    workers: int = execution(1, ge=1)
    """Worker processes; verdicts do not depend on it."""

    cache: str | None = execution(None)
    """SQLite file that keeps verdicts between runs; none by default."""
