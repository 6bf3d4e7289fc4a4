"""Grade answers: the public face of the grader.

An answer is decided here where that takes no limits (the same text, plain numbers), found in the cache, or sent to a
worker process; equal pairs are judged once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from ladle.grading.cache import VerdictCache, key_of, salt_of
from ladle.grading.config import GraderConfig
from ladle.grading.exact import judge_exactly
from ladle.grading.extract import Extracted, extract_answer
from ladle.grading.pool import Timed, WorkerPool
from ladle.grading.verdict import AnswerType, Grade, Judgement, Pair, Verdict, answer_type

__all__ = ["AnswerType", "Grade", "Grader", "Pair", "Verdict"]

READ_AHEAD = 1024
"""Pairs taken from the input before the first verdict is given back; what the workers share between them."""
MAX_REMEMBERED = 100_000
"""Verdicts kept in memory; a rollout repeats most of its answers."""
_GIVEN = "given"


class Grader:
    """A context manager that grades answers; its worker processes are started when first needed and end with it."""

    def __init__(self, config: GraderConfig | None = None) -> None:
        """Prepare to grade.

        Args:
            config: limits, workers and cache; the defaults if None.
        """
        self._config = config or GraderConfig()
        self._salt = salt_of(self._config)
        self._pool = WorkerPool(self._config)
        self._cache = VerdictCache(Path(self._config.cache)) if self._config.cache else None
        self._remembered: dict[bytes, Judgement] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)
        if self._cache is not None:
            self._cache.close()

    def grade(self, pair: Pair) -> Grade:
        """Grade one bare answer."""
        return next(self.grade_many([pair]))

    def grade_many(self, pairs: Iterable[Pair]) -> Iterator[Grade]:
        """Grade bare answers, in order.

        Raises:
            UserError: a pair's type is not known.
        """
        return self._grade_found((pair, Extracted(pair.answer, _GIVEN)) for pair in pairs)

    def grade_completions(self, pairs: Iterable[Pair]) -> Iterator[Grade]:
        """Grade whole completions, in order: the answer is found in each first (`ladle.grading.extract`).

        Raises:
            UserError: a pair's type is not known.
        """
        return self._grade_found(_extract(pair) for pair in pairs)

    def _grade_found(self, found: Iterable[tuple[Pair, Extracted]]) -> Iterator[Grade]:
        found = iter(found)
        while chunk := list(islice(found, READ_AHEAD)):
            timed = self._judge_chunk([pair for pair, _ in chunk])
            for (_, extracted), (judgement, seconds) in zip(chunk, timed, strict=True):
                yield Grade(judgement.verdict, judgement.reason, seconds, extracted.answer, extracted.method)

    def _judge_chunk(self, pairs: Sequence[Pair]) -> list[Timed]:
        here = [self._judge_here(pair) for pair in pairs]
        keys = {index: key_of(pairs[index], self._salt) for index, timed in enumerate(here) if timed is None}
        elsewhere = self._judge_elsewhere({key: pairs[index] for index, key in keys.items()})
        return [elsewhere[keys[index]] if timed is None else timed for index, timed in enumerate(here)]

    def _judge_here(self, pair: Pair) -> Timed | None:
        started = time.perf_counter()
        judgement = judge_exactly(pair, answer_type(pair.type))
        if judgement is None and max(len(pair.gold), len(pair.answer)) > self._config.max_characters:
            judgement = Judgement(Verdict.UNPARSED, f"longer than {self._config.max_characters} characters")
        return None if judgement is None else Timed(judgement, time.perf_counter() - started)

    def _judge_elsewhere(self, pairs: Mapping[bytes, Pair]) -> dict[bytes, Timed]:
        """Judge pairs by their keys: from memory, from the cache, in the workers."""
        known = {key: self._remembered[key] for key in pairs if key in self._remembered}
        unknown = [key for key in pairs if key not in known]
        if self._cache is not None and unknown:
            known |= self._cache.get_many(unknown)
            unknown = [key for key in unknown if key not in known]
        judged = dict(zip(unknown, self._pool.judge_all([pairs[key] for key in unknown]), strict=True))
        self._keep({key: timed.judgement for key, timed in judged.items()})
        return {key: Timed(judgement, 0.0) for key, judgement in known.items()} | judged

    def _keep(self, judgements: Mapping[bytes, Judgement]) -> None:
        if self._cache is not None and judgements:
            self._cache.put_many(judgements)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered |= judgements


def _extract(pair: Pair) -> tuple[Pair, Extracted]:
    extracted = extract_answer(pair.answer, pair.multiple)
    return Pair(pair.gold, extracted.answer, pair.type, pair.tolerance, pair.unit, pair.multiple), extracted
