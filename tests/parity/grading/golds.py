"""The gold answers of the six benchmarks, and near misses of them: one character changed, deterministically."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

from ladle.grading.verdict import Pair

COUNTS = {"aime24": 30, "amc23": 40, "gsm8k": 1319, "math500": 500, "minerva_math": 272, "olympiadbench": 675}
_COMMAND = re.compile(r"\\[a-zA-Z]+|\\(?:begin|end)\{[a-z]+\}")


def read_golds(folder: Path) -> list[Pair]:
    """Return each item's gold as a pair with itself, with what its benchmark says of how to compare it."""
    golds: list[Pair] = []
    for name in COUNTS:
        with (folder / name / "test.jsonl").open(encoding="utf-8") as lines:
            golds.extend(_read_gold(name, json.loads(line)) for line in lines)
    return golds


def _read_gold(name: str, row: dict[str, Any]) -> Pair:
    if name == "olympiadbench":
        gold = row["final_answer"][0]
        tolerance = float(row["error"]) if row["error"] else None
        return Pair(gold, gold, row["answer_type"], tolerance, row["unit"], bool(row["is_multiple_answer"]))
    if name == "gsm8k":
        gold = row["answer"].rpartition("####")[2].strip()
    elif name == "math500":
        gold = row["answer"]
    elif name == "minerva_math":
        gold = _last_box(row["solution"])
    else:
        gold = str(row["answer"])
    return Pair(gold, gold)


def _last_box(solution: str) -> str:
    start = solution.rindex("\\boxed{") + len("\\boxed{")
    depth = 1
    for index in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[index], 0)
        if depth == 0:
            return solution[start:index]
    raise ValueError("the last box of a solution is not closed")


def near_misses(gold: str) -> Iterator[str]:
    """Yield the gold with each of its digits and letters, in turn, changed to another; command names are left whole.

    A digit becomes another digit, a letter another letter of its own case, never the same letter in the other case.
    """
    commands = [found.span() for found in _COMMAND.finditer(gold)]
    for index, character in enumerate(gold):
        if any(start <= index < end for start, end in commands):
            continue
        for alphabet in (digits, ascii_lowercase, ascii_uppercase):
            if character in alphabet:
                choice = random.Random(f"{gold} {index}").choice(alphabet.replace(character, ""))
                yield gold[:index] + choice + gold[index + 1 :]
