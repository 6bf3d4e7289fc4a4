"""`ladle grade`: one pair from the command line, or a file of pairs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.grading.config import GraderConfig
from ladle.grading.extract import bare_answer
from ladle.grading.grade import Grader
from ladle.grading.verdict import Pair, Verdict, answer_type
from ladle.log import progress

_TEXTS = ("gold", "answer")
_TYPES: dict[str, tuple[type, ...]] = {
    "type": (str,),
    "tolerance": (int, float),
    "unit": (str,),
    "multiple": (bool,),
}


def grade_one(gold: str, answer: str, config: GraderConfig | None = None) -> dict[str, Any]:
    """Grade one answer, bare or at the end of a sentence; returns its verdict, reason and seconds."""
    with Grader(config) as grader:
        grade = grader.grade(Pair(gold, bare_answer(answer)))
    return {"verdict": grade.verdict.value, "reason": grade.reason, "seconds": grade.seconds}


def grade_file(pairs: Path, verdicts: Path, config: GraderConfig | None = None) -> dict[str, int]:
    """Grade a file of pairs and write the same rows, in order, with `verdict`, `reason` and `seconds` added.

    Args:
        pairs: JSON lines of `gold`, `answer`, and optionally `type`, `tolerance`, `unit` and `multiple`; other fields
            are carried over.
        verdicts: the file to write; it appears when it is complete.
        config: limits, workers and cache; the defaults if None.

    Returns:
        How many answers got each verdict.

    Raises:
        UserError: a row is not a pair; the message names its line.
    """
    rows = list(_read_rows(pairs))
    verdicts.parent.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter({verdict.value: 0 for verdict in Verdict})
    partial = verdicts.with_name(verdicts.name + ".partial")
    with (
        Grader(config) as grader,
        partial.open(
            "w", encoding="utf-8", errors="backslashreplace"
        ) as out,  # half a surrogate pair, as JSON spells it
        progress(len(rows), "grading", "answers") as bar,
    ):
        for (row, _), grade in zip(rows, grader.grade_many(pair for _, pair in rows), strict=True):
            counts[grade.verdict.value] += 1
            verdict = {"verdict": grade.verdict.value, "reason": grade.reason, "seconds": grade.seconds}
            out.write(json.dumps(row | verdict, ensure_ascii=False) + "\n")
            bar.advance(1)
    partial.replace(verdicts)
    return dict(counts)


def _read_rows(path: Path) -> Iterator[tuple[dict[str, Any], Pair]]:
    try:
        lines = path.open("rb")
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise UserError(problem, "name a file of JSON lines with gold and answer") from error
    with lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _read_row(line, f"{path}:{number}")


def _read_row(line: bytes, place: str) -> tuple[dict[str, Any], Pair]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8: {error.reason}", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        problem = f"{place} is not JSON: {error.msg} at column {error.colno}"
        raise UserError(problem, "write one JSON object a line") from error
    if not isinstance(row, dict):
        raise UserError(f"{place} is not an object", 'write {"gold": …, "answer": …}')
    fields: dict[str, Any] = {name: _read_text(row, name, place) for name in _TEXTS}
    fields |= {name: row[name] for name, kinds in _TYPES.items() if _is_given(row, name, kinds, place)}
    try:
        answer_type(fields.get("type"))
    except UserError as error:
        raise UserError(f"{place}: {error.problem}", error.fix) from error
    fields["answer"] = bare_answer(fields["answer"], fields.get("multiple", False))
    return row, Pair(**fields)


def _is_given(row: dict[str, Any], name: str, kinds: tuple[type, ...], place: str) -> bool:
    """Whether the row has the field; a field of another type is the user's to mend."""
    value = row.get(name)
    if value is None:
        return False
    if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
        raise UserError(f"{place} has {name} {value!r}", f"make it a {kinds[-1].__name__}, or leave it out")
    if name == "tolerance" and not 0 <= value < math.inf:
        raise UserError(f"{place} has tolerance {value!r}", "make it zero or more")
    return True


def _read_text(row: dict[str, Any], name: str, place: str) -> str:
    """Return a text field; numbers are taken as they are written, since `"gold": 18` says what `"18"` says."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    if name not in row:
        raise UserError(f"{place} has no {name!r}", f'add "{name}", a text')
    raise UserError(f"{place} has {name} {value!r}", "make it a text")
