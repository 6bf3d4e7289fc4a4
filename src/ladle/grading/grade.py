"""Grade answers: the public face of the grader.

An answer is decided here where that takes no limits (the same text, plain numbers), found in the cache, or sent to a
worker process; equal pairs are judged once.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice, repeat
from pathlib import Path

from ladle.errors import UserError
from ladle.grading.extract import Extracted, Extraction, extract_answer
from ladle.grading.pool import GraderConfig, WorkerPool
from ladle.grading.verdict import AnswerType, Grade, Judgement, Pair, Verdict, answer_type

__all__ = ["AnswerType", "Grade", "Grader", "GraderConfig", "Pair", "Verdict"]

# Pairs taken from the input before the first verdict is returned; what the workers share between them.
READ_AHEAD = 1024


class Grader(AbstractContextManager["Grader"]):
    """A context manager that grades answers; its worker processes are started when first needed and end with it."""

    def __init__(self, config: GraderConfig | None = None) -> None:
        """Prepare to grade.

        Args:
            config: limits, workers and cache; the defaults if None.
        """
        self._config = config or GraderConfig()
        self._salt = salt_of(self._config)
        self._pool = WorkerPool(self._config)
        self._cache = VerdictCache(self._config.cache)

    def __exit__(self, *raised: object) -> None:
        self._pool.__exit__(*raised)
        self._cache.close()

    def grade(self, pair: Pair) -> Grade:
        """Grade one bare answer."""
        return next(self.grade_many([pair]))

    def grade_many(self, pairs: Iterable[Pair]) -> Iterator[Grade]:
        """Grade bare answers, in order.

        Raises:
            UserError: a pair's type is not known.
        """
        return self._grade((pair, Extracted(pair.answer, "given")) for pair in pairs)

    def gold_problems(self, pairs: Iterable[Pair]) -> Iterator[str | None]:
        """Say of each pair's gold, in order, why no answer but its very text could be graded by it; None if some could.

        The answers are not looked at. Call it before sampling: golds that cannot be read are known without a model.

        Raises:
            UserError: a pair's type is not known.
        """
        remaining = (pair._replace(answer=pair.gold) for pair in pairs)
        while chunk := list(islice(remaining, READ_AHEAD)):
            for judgement in self._judge_elsewhere(chunk):
                yield None if judgement.verdict is Verdict.CORRECT else judgement.reason

    def grade_completions(
        self, pairs: Iterable[Pair], truncated: Iterable[bool] | None = None, extraction: Extraction = "ladle"
    ) -> Iterator[Grade]:
        """Grade whole completions, in order: the answer is found in each first (`ladle.grading.extract`).

        Args:
            pairs: golds and completions.
            truncated: for each, whether it was cut off (finish_reason `length`), so that only a whole box or statement
                counts; None if none was.
            extraction: `upstream` finds answers by the rule of the Qwen2.5-Math harness, for comparisons with it.

        Raises:
            UserError: a pair's type is not known.
        """
        cuts = repeat(False) if truncated is None else truncated
        return self._grade(
            (pair, extract_answer(pair.answer, pair.multiple, cut, extraction))
            for pair, cut in zip(pairs, cuts, strict=truncated is not None)
        )

    def _grade(self, found: Iterator[tuple[Pair, Extracted]]) -> Iterator[Grade]:
        while chunk := list(islice(found, READ_AHEAD)):
            pairs = [pair._replace(answer=extracted.answer) for pair, extracted in chunk]
            here = [judge_here(pair, self._config.max_characters) for pair in pairs]
            left = [pair for pair, judged in zip(pairs, here, strict=True) if judged is None]
            elsewhere = iter(self._judge_elsewhere(left))
            for judged, (_, extracted) in zip(here, chunk, strict=True):
                verdict, reason, seconds, _ = judged or next(elsewhere)
                yield Grade(verdict, reason, seconds, extracted.answer, extracted.method)

    def _judge_elsewhere(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Judge pairs from the cache and in the workers."""
        keys = [key_of(pair, self._salt) for pair in pairs]
        unique = dict(zip(keys, pairs, strict=True))
        known = self._cache.get_many([*unique])
        unknown = [key for key in unique if key not in known]
        new = dict(zip(unknown, self._pool.judge_all([unique[key] for key in unknown]), strict=True))
        self._cache.put_many(new)
        return [known.get(key) or new[key] for key in keys]


# The fast path: the same text, or two plain numbers. It needs no limits, so it runs without a worker process.

_MAX_NUMBER_CHARACTERS = 60  # longer numbers go the general way
_NUMBER = re.compile(
    r"\s*\$?(?:\\boxed\{)?\s*(?P<number>[-+]?(?:"
    r"[1-9]\d{0,2}(?:(?:,|\{,\}|,\\!)\d{3})+(?:\.\d+)?"
    r"|\\[dt]?frac\s*\{\s*\d{1,18}\s*\}\s*\{\s*\d{1,18}\s*\}"
    r"|\d{1,18}\s*/\s*\d{1,18}"
    r"|\d+(?:\.\d+)?|\.\d+"
    r"))\s*\}?\$?\s*\.?\s*",
    re.ASCII,
)
_ABOVE_BELOW = re.compile(r"\}\s*\{")
_NO_NUMBER = re.compile(r"[^-\d./]")


def judge_here(pair: Pair, max_characters: int) -> Judgement | None:
    """Return the verdict on the same text, on two plain numbers and on a text too long; None for any other pair.

    Decimals of different length are left to the rules of rounding, as is all that a tolerance or type affects.

    Raises:
        UserError: the pair's type is not known.
    """
    kind = answer_type(pair.type)
    if pair.gold == pair.answer and pair.gold.strip():
        return Judgement(Verdict.CORRECT, "the same text")
    if max(len(pair.gold), len(pair.answer)) > max_characters:
        return Judgement(Verdict.UNPARSED, f"longer than {max_characters} characters")
    if pair.multiple or pair.tolerance is not None or kind not in (None, AnswerType.INT, AnswerType.NUMBER):
        return None
    gold = _read_number(pair.gold)
    answer = _read_number(pair.answer) if gold is not None else None
    if gold is None or answer is None:
        return None
    if gold == answer:
        return Judgement(Verdict.CORRECT, "equal numbers")
    are_whole = gold.denominator == answer.denominator == 1
    return Judgement(Verdict.WRONG, "different numbers") if are_whole else None


def _read_number(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(text) if len(text) <= _MAX_NUMBER_CHARACTERS else None
    if found is None:
        return None
    try:
        return Fraction(_NO_NUMBER.sub("", _ABOVE_BELOW.sub("/", found["number"])))
    except ZeroDivisionError:
        return None


# Verdicts kept between runs, by everything that decided them.

# Raise it with any change that can change a verdict: verdicts of other versions are not found any more.
GRADER_VERSION = 6
_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, verdict TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID
"""


class VerdictCache:
    """Verdicts in memory, or in an SQLite file that several processes may use at the same time."""

    def __init__(self, file: str | None) -> None:
        """Open the file, and make it where there is none; in memory if it is None.

        Raises:
            UserError: it is not a cache, or cannot be written.
        """
        try:
            if file is not None:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file or ":memory:", timeout=60, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_SCHEMA)
        except (OSError, sqlite3.DatabaseError) as error:
            problem = f"{file} cannot serve as the grader's cache: {error}"
            raise UserError(problem, "delete it or name another file") from error

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Judgement]:
        """Return the verdicts that are known of these keys."""
        marks = ",".join("?" * len(keys))  # of one chunk: SQLite's bound is 32,766
        rows = self._connection.execute(f"SELECT key, verdict, reason FROM verdicts WHERE key IN ({marks})", keys)
        return {key: Judgement(Verdict(verdict), reason) for key, verdict, reason in rows}

    def put_many(self, judgements: Mapping[bytes, Judgement]) -> None:
        """Keep these verdicts, in one transaction; not timeouts, which say as much of the machine as of the answer."""
        kept = {key: one for key, one in judgements.items() if one.verdict is not Verdict.TIMEOUT}
        rows = [(key, one.verdict.value, one.reason) for key, one in kept.items()]
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def salt_of(config: GraderConfig) -> bytes:
    """Return what besides the pair decides a verdict: the versions and the settings."""
    versions = [GRADER_VERSION, version("math-verify"), version("sympy"), version("latex2sympy2_extended")]
    settings = config.model_dump(exclude={"workers", "cache"})
    return blake2b(json.dumps([versions, settings], sort_keys=True).encode(), digest_size=32).digest()


def key_of(pair: Pair, salt: bytes) -> bytes:
    """Return the key of a pair: 16 bytes that its every field decides."""
    return blake2b(json.dumps(pair).encode(), digest_size=16, key=salt).digest()
