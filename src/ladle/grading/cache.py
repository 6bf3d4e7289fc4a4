"""Verdicts kept between runs in an SQLite file, under everything that decided them.

Timeouts are not kept: they say as much of the machine as of the answer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from ladle.errors import UserError
from ladle.grading.config import GraderConfig
from ladle.grading.verdict import Judgement, Pair, Verdict

GRADER_VERSION = 3
"""Raise it with any change that can change a verdict: verdicts of other versions are not found any more."""

_KEYS_AT_ONCE = 500  # SQLite's default bound on parameters is 999 in its older versions
_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, verdict TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID
"""


class VerdictCache:
    """A file of verdicts; several processes may use it at the same time."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make it where there is none.

        Raises:
            UserError: it is not a cache, or cannot be written.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_SCHEMA)
        except (OSError, sqlite3.DatabaseError) as error:
            raise UserError(
                f"{path} cannot serve as the grader's cache: {error}", "delete it or name another file"
            ) from error

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Judgement]:
        """Return the verdicts that are known of these keys."""
        found: dict[bytes, Judgement] = {}
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            some = keys[start : start + _KEYS_AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._connection.execute(f"SELECT key, verdict, reason FROM verdicts WHERE key IN ({marks})", some)
            found.update((key, Judgement(Verdict(verdict), reason)) for key, verdict, reason in rows)
        return found

    def put_many(self, judgements: Mapping[bytes, Judgement]) -> None:
        """Keep these verdicts, in one transaction."""
        rows: Iterable[tuple[bytes, str, str]] = (
            (key, judgement.verdict.value, judgement.reason)
            for key, judgement in judgements.items()
            if judgement.verdict is not Verdict.TIMEOUT
        )
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def salt_of(config: GraderConfig) -> bytes:
    """Return what besides the pair decides a verdict: the versions and the settings."""
    versions = [GRADER_VERSION, version("math-verify"), version("sympy"), version("latex2sympy2_extended")]
    return json.dumps([versions, config.identity()], sort_keys=True).encode()


def key_of(pair: Pair, salt: bytes) -> bytes:
    """Return the key of a pair: 16 bytes that its every field decides."""
    fields = json.dumps([pair.gold, pair.answer, pair.type, pair.tolerance, pair.unit, pair.multiple])
    return blake2b(fields.encode(), digest_size=16, key=blake2b(salt, digest_size=32).digest()).digest()
