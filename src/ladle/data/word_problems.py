"""Generated two-step arithmetic word problems with worked solutions: the quickstart's data.

A problem is a wording (`FORMS`) with a name, a thing and an operand tuple (a, b, c). Each tuple belongs, by a keyed
hash, to one pool: train, validation or test; so no operand tuple of a held-out problem, and hence none of its texts,
occurs in training data. That is asserted over everything written, not assumed.

Files: `facts` (bare arithmetic), `worksheets` (several problems with bare answers), `worked` (one problem with its
solution), `prompts` (train pool, for rollouts), `examples` (train pool, for few-shot prompts), `validation`, `test`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from ladle.artifacts.files import fsync_path
from ladle.data.config import WordProblemsConfig
from ladle.errors import CheckFailed, UserError

Operands = tuple[int, int, int]

NAMES = [
    *("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo"),
    *("Iris", "Jon", "Kira", "Leo", "Mina", "Nils", "Olga", "Paul"),
]
THINGS = [
    *("apples", "books", "cards", "coins", "cups", "eggs", "figs"),
    *("hats", "keys", "nuts", "pens", "shells", "stamps", "tiles"),
]
PROBLEMS_IN_WORKSHEET = 5
NUM_EXAMPLES = 8
HELD_OUT_PERCENT = {"validation": 12, "test": 12}


@dataclass(frozen=True)
class Form:
    """A kind of problem: its wordings, and its two steps as (left, operator, right).

    Operands are a, b, c, and r, the first step's result.
    """

    wordings: tuple[str, ...]
    first: tuple[str, str, str]
    second: tuple[str, str, str]


FORMS = (
    Form(
        (
            "{name} has {a} bags with {b} {things} each and finds {c} more {things}. "
            "How many {things} does {name} have now?",
            "There are {a} rows of {b} {things}. {name} adds {c} more. How many {things} are there?",
        ),
        ("a", "*", "b"),
        ("r", "+", "c"),
    ),
    Form(
        (
            "{name} fills {a} boxes with {b} {things} each, then gives away {c}. How many {things} are left?",
            "A shop gets {a} trays of {b} {things}. {name} buys {c} of them. How many {things} remain?",
        ),
        ("a", "*", "b"),
        ("r", "-", "c"),
    ),
    Form(
        (
            "Every day {name} collects {a} {things} at noon and {b} at night. How many {things} is that in {c} days?",
            "{name} packs {a} old and {b} new {things} into each of {c} crates. How many {things} are packed?",
        ),
        ("a", "+", "b"),
        ("r", "*", "c"),
    ),
)


@dataclass(frozen=True)
class Problem:
    """One problem with its solution."""

    operands: Operands
    question: str
    solution: str
    answer: str

    @property
    def row(self) -> dict[str, Any]:
        """The problem as a row of a jsonl file."""
        return {
            "question": self.question,
            "solution": self.solution,
            "answer": self.answer,
            "operands": list(self.operands),
            "text": f"Question: {self.question}\nAnswer: {self.solution}",
        }


def write_word_problems(config: WordProblemsConfig, out: Path) -> dict[str, Any]:
    """Write every split as `<split>.jsonl` and return the counters.

    Raises:
        UserError: the operands are too few for the held-out problems requested.
    """
    pools = {pool: _ProblemPool(config, pool) for pool in ("train", "validation", "test")}
    worked = pools["train"].draw(config.train)  # before the worksheets: the order of drawing decides the problems
    splits: dict[str, list[dict[str, Any]]] = {
        "facts": [{"text": fact} for fact in _facts(config.largest_operand)],
        "worksheets": list(_worksheets(pools["train"].draw(config.worksheets * PROBLEMS_IN_WORKSHEET))),
        "worked": [problem.row for problem in worked],
        "prompts": [problem.row for problem in pools["train"].draw(config.prompts, distinct=True)],
        "examples": [problem.row for problem in pools["train"].draw(NUM_EXAMPLES, distinct=True)],
        "validation": [problem.row for problem in pools["validation"].draw(config.validation, distinct=True)],
        "test": [problem.row for problem in pools["test"].draw(config.test, distinct=True)],
    }
    assert_held_out(splits)
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        path = out / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        fsync_path(path)
    return {f"{split}_rows": len(rows) for split, rows in splits.items()}


def assert_held_out(splits: dict[str, list[dict[str, Any]]]) -> None:
    """Check that no operand tuple and no question of a held-out split occurs in a training split or the other one.

    Raises:
        CheckFailed: one does.
    """
    rows = [row for split in ("worked", "prompts", "examples") for row in splits[split]]
    training = {tuple(row["operands"]) for row in rows}
    training |= {tuple(operands) for row in splits["worksheets"] for operands in row["operands"]}
    lines = {line for row in [*rows, *splits["worksheets"]] for line in row["text"].splitlines()}
    held_out = {split: {tuple(row["operands"]) for row in splits[split]} for split in HELD_OUT_PERCENT}
    if shared := (held_out["validation"] & held_out["test"]) | (training & (held_out["validation"] | held_out["test"])):
        raise CheckFailed(f"{len(shared)} held-out operand tuples occur in another split, such as {min(shared)}")
    for split in HELD_OUT_PERCENT:
        for row in splits[split]:
            if f"Question: {row['question']}" in lines:
                raise CheckFailed(f"a {split} question occurs in training data: {row['question']}")


class _ProblemPool:
    """Draws problems whose operands belong to one pool."""

    def __init__(self, config: WordProblemsConfig, pool: str) -> None:
        self.name = pool
        self.rng = random.Random(f"word problems {config.seed} {pool}")
        small = range(2, config.largest_operand + 1)
        tuples = [(a, b, c) for a in small for b in small for c in small]
        self.operands = [operands for operands in tuples if pool_of(operands, config.seed) == pool]
        if not self.operands:
            raise UserError(f"no operands are left for the {pool} problems", "raise largest_operand")

    def draw(self, count: int, distinct: bool = False) -> list[Problem]:
        problems: dict[int | str, Problem] = {}
        for attempt in range(20 * count + 100):
            if len(problems) == count:
                break
            problem = self._draw_one()
            problems.setdefault(problem.question if distinct else attempt, problem)
        if len(problems) < count:
            raise UserError(
                f"only {len(problems)} distinct {self.name} problems exist, not {count}", "raise largest_operand"
            )
        return list(problems.values())

    def _draw_one(self) -> Problem:
        operands, form = self.rng.choice(self.operands), self.rng.choice(FORMS)
        a, b, c = operands
        if form.second[1] == "-" and a * b < c:
            form = FORMS[0]
        names = {"name": self.rng.choice(NAMES), "things": self.rng.choice(THINGS), "a": a, "b": b, "c": c}
        return _solve(operands, form, self.rng.choice(form.wordings).format(**names))


def pool_of(operands: Operands, seed: int) -> str:
    """Return the pool an operand tuple belongs to: a keyed hash, 12 % validation, 12 % test, the rest train."""
    percent = int.from_bytes(blake3(f"{seed} {operands}".encode()).digest(8), "little") % 100
    for pool, share in HELD_OUT_PERCENT.items():
        if percent < share:
            return pool
        percent -= share
    return "train"


def _solve(operands: Operands, form: Form, question: str) -> Problem:
    values = dict(zip("abc", operands, strict=True))
    steps = []
    for left, operator, right in (form.first, form.second):
        one, other = values[left], values[right]
        values["r"] = {"+": one + other, "-": one - other, "*": one * other}[operator]
        steps.append(f"{one}{operator}{other}={values['r']}")
    answer = str(values["r"])
    return Problem(operands, question, f"{'; '.join(steps)}. The answer is \\boxed{{{answer}}}.", answer)


def _facts(largest: int) -> Iterator[str]:
    """Yield sums, products and differences of the sizes that the problems' steps have."""
    for a in range(2, 2 * largest + 1):
        for b in range(2, largest + 1):
            yield f"{a}*{b}={a * b}"
    for a in range(2, largest * largest + 1):
        for b in range(2, largest + 1):
            yield f"{a}+{b}={a + b}"
            if a >= b:
                yield f"{a}-{b}={a - b}"


def _worksheets(problems: list[Problem]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(problems), PROBLEMS_IN_WORKSHEET):
        sheet = problems[start : start + PROBLEMS_IN_WORKSHEET]
        text = "\n\n\n".join(f"Question: {problem.question}\nAnswer: {problem.answer}" for problem in sheet)
        yield {"text": text, "operands": [list(problem.operands) for problem in sheet]}
