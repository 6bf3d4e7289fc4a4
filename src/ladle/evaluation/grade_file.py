"""Grade a file of pairs: `ladle grade PAIRS --out VERDICTS`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ladle.data.rows import read_placed_rows
from ladle.errors import UserError
from ladle.grading.extract import bare_answer
from ladle.grading.grade import Grader, Pair, Verdict
from ladle.grading.verdict import answer_type
from ladle.log import progress

# `"gold": 18` says what `"18"` says.
_Text = Annotated[str, BeforeValidator(lambda value: repr(value) if type(value) in (int, float) else value)]

# Numbers and booleans are text in a CSV.
_OfText = BeforeValidator(lambda value: json.loads(value.lower()) if isinstance(value, str) else value)


class _Row(BaseModel):
    """What a row must hold to be a pair; its other columns are carried over."""

    model_config = ConfigDict(strict=True)

    gold: _Text
    answer: _Text
    type: Annotated[str | None, AfterValidator(answer_type)] = None
    tolerance: Annotated[float, _OfText, Field(ge=0, allow_inf_nan=False)] | None = None
    unit: str | None = None
    multiple: Annotated[bool, _OfText] | None = None


def grade_file(pairs: Path, verdicts: Path) -> dict[str, int]:
    """Grade a file of pairs and write the same rows, in order, with `verdict`, `reason` and `seconds` added.

    Args:
        pairs: rows of `gold`, `answer`, and optionally `type`, `tolerance`, `unit` and `multiple`.
        verdicts: the JSON lines to write; the file appears when it is complete.

    Returns:
        How many answers got each verdict.

    Raises:
        UserError: a row is not a pair; the message names its line.
    """
    if not pairs.is_file():
        raise UserError(f"there is no file {pairs}", "name a file of rows with gold and answer")
    rows = [(row, _pair(row, place)) for place, row in read_placed_rows([pairs], any_text=True)]
    verdicts.parent.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys(map(str, Verdict), 0)
    partial = verdicts.with_name(verdicts.name + ".partial")
    with (
        Grader() as grader,
        partial.open("w", encoding="utf-8", errors="backslashreplace") as out,  # half a surrogate pair, as JSON has it
        progress(len(rows), "grading", "answers") as bar,
    ):
        for (row, _), grade in zip(rows, grader.grade_many(pair for _, pair in rows), strict=True):
            counts[grade.verdict] += 1
            verdict = {"verdict": grade.verdict, "reason": grade.reason, "seconds": grade.seconds}
            out.write(json.dumps(row | verdict, ensure_ascii=False) + "\n")
            bar.advance(1)
    partial.replace(verdicts)
    return counts


def _pair(row: dict[str, Any], place: str) -> Pair:
    try:
        fields = _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        problem = f"no {name!r}" if first["type"] == "missing" else f"{name} {first['input']!r} ({first['msg']})"
        fix = 'write a row as {"gold": "1/2", "answer": "0.5"}, with type, tolerance, unit and multiple only if needed'
        raise UserError(f"{place} has {problem}", fix) from error
    multiple = bool(fields.multiple)
    return Pair(**dict(fields) | {"answer": bare_answer(fields.answer, multiple), "multiple": multiple})
