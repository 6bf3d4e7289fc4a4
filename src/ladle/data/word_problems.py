"""Generated two-step arithmetic word problems with worked solutions: the quickstart's data.

A problem is a wording (`FORMS`) with a name, a thing and an operand tuple (a, b, c). Each tuple belongs, by a keyed
hash, to one pool: train, validation or test; so no operand tuple of a held-out problem, and hence none of its texts,
occurs in training data. That is asserted over everything written, not assumed.

Files: `facts` (bare arithmetic), `worksheets` (several problems with bare answers), `worked` (one problem with its
solution), `prompts` (train pool, for rollouts), `examples` (train pool, for few-shot prompts), `validation`, `test`;
and on request, to test what carries over, `other_wording` and `three_steps` (test pool) and `larger_operands`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from ladle.artifacts.files import fsync_path
from ladle.data.config import WordProblemsConfig
from ladle.errors import CheckFailed, UserError

Operands = tuple[int, ...]
Row = dict[str, Any]

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
HARDER = ("other_wording", "larger_operands", "three_steps")


class Form(NamedTuple):
    """A kind of problem: its steps, over the operands a, b, c, d and r, the last step's result, and its wordings."""

    steps: tuple[str, ...]
    wordings: list[str]


FORMS = (
    Form(("a*b", "r+c"), [
        "{name} has {a} bags with {b} {things} each and finds {c} more {things}. How many {things} does {name} have "
        "now?",
        "There are {a} rows of {b} {things}. {name} adds {c} more. How many {things} are there?",
    ]),
    Form(("a*b", "r-c"), [
        "{name} fills {a} boxes with {b} {things} each, then gives away {c}. How many {things} are left?",
        "A shop gets {a} trays of {b} {things}. {name} buys {c} of them. How many {things} remain?",
    ]),
    Form(("a+b", "r*c"), [
        "Every day {name} collects {a} {things} at noon and {b} at night. How many {things} is that in {c} days?",
        "{name} packs {a} old and {b} new {things} into each of {c} crates. How many {things} are packed?",
    ]),
)  # fmt: skip
OTHER_WORDINGS = (
    Form(("a*b", "r+c"), [
        "Each of {a} friends brings {name} {b} {things}; {c} {things} were there before. What is the total?",
    ]),
    Form(("a*b", "r-c"), [
        "{name} orders {a} times {b} {things}. After {c} are sold, how many {things} does {name} still have?",
    ]),
    Form(("a+b", "r*c"), [
        "A pack holds {a} red and {b} blue {things}. {name} buys {c} packs. How many {things} is that?",
    ]),
)  # fmt: skip
THREE_STEPS = (
    Form(("a*b", "r+c", "r+d"), [
        "{name} has {a} bags with {b} {things} each, finds {c} more {things} and then {d} more. How many {things} does "
        "{name} have now?",
    ]),
    Form(("a*b", "r+c", "r-d"), [
        "There are {a} rows of {b} {things}. {name} adds {c} more and takes {d} away. How many {things} are there?",
    ]),
    Form(("a+b", "r*c", "r+d"), [
        "Every day {name} collects {a} {things} at noon and {b} at night. In {c} days, with {d} more at the end, how "
        "many {things} is that?",
    ]),
)  # fmt: skip


def write_word_problems(config: WordProblemsConfig, out: Path) -> dict[str, Any]:
    """Write every split as `<split>.jsonl` and return the counters.

    Raises:
        UserError: the operands are too few for the held-out problems requested.
    """
    train, validation, test = (_draw(config, pool) for pool in ("train", "validation", "test"))
    worked = [*islice(train, config.train)]  # before the worksheets: the order of drawing decides the problems
    splits: dict[str, list[Row]] = {
        "facts": [{"text": fact} for fact in _facts(config.largest_operand)],
        "worksheets": [_worksheet([*islice(train, PROBLEMS_IN_WORKSHEET)]) for _ in range(config.worksheets)],
        "worked": worked,
        "prompts": _distinct(train, config.prompts),
        "examples": _distinct(train, NUM_EXAMPLES),
        "validation": _distinct(validation, config.validation),
        "test": _distinct(test, config.test),
    }
    if config.harder:
        splits |= {name: _distinct(problems, config.harder) for name, problems in _harder(config).items()}
    assert_held_out(splits)
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        path = out / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        fsync_path(path)
    return {f"{split}_rows": len(rows) for split, rows in splits.items()}


def assert_held_out(splits: dict[str, list[Row]]) -> None:
    """Check that no operand tuple and no question of a held-out split occurs in a training split or the other one.

    Raises:
        CheckFailed: one does.
    """
    rows = [row for split in ("worked", "prompts", "examples") for row in splits[split]]
    training = {tuple(row["operands"]) for row in rows}
    training |= {tuple(operands) for row in splits["worksheets"] for operands in row["operands"]}
    lines = {line for row in [*rows, *splits["worksheets"]] for line in row["text"].splitlines()}
    validation, test = ({tuple(row["operands"]) for row in splits[split]} for split in HELD_OUT_PERCENT)
    harder = [row for split in HARDER for row in splits.get(split, [])]
    test |= {tuple(row["operands"][:3]) for row in harder}
    if shared := (validation & test) | (training & (validation | test)):
        raise CheckFailed(f"{len(shared)} held-out operand tuples occur in another split, such as {min(shared)}")
    for row in [*splits["validation"], *splits["test"], *harder]:
        if f"Question: {row['question']}" in lines:
            raise CheckFailed(f"a held-out question occurs in training data: {row['question']}")


def _draw(config: WordProblemsConfig, pool: str) -> Iterator[Row]:
    """Yield problems whose operands belong to one pool, without end."""
    return _problems(f"word problems {config.seed} {pool}", _operands(config, pool), FORMS)


def _harder(config: WordProblemsConfig) -> dict[str, Iterator[Row]]:
    """Return problems of each harder kind, without end."""
    test, largest = _operands(config, "test"), config.largest_operand
    longer: list[Operands] = [(*operands, d) for operands in test for d in range(2, largest + 1)]
    up_to_double = range(2, 2 * largest + 1)
    larger: list[Operands] = [
        (a, b, c) for a in up_to_double for b in up_to_double for c in up_to_double if min(a, b, c) > largest
    ]
    kinds: list[tuple[list[Operands], tuple[Form, ...]]]
    kinds = [(test, OTHER_WORDINGS), (larger, FORMS), (longer, THREE_STEPS)]
    return {
        name: _problems(f"word problems {config.seed} {name}", *kind) for name, kind in zip(HARDER, kinds, strict=True)
    }


def _operands(config: WordProblemsConfig, pool: str) -> list[Operands]:
    small = range(2, config.largest_operand + 1)
    tuples: list[Operands] = [(a, b, c) for a in small for b in small for c in small]
    tuples = [operands for operands in tuples if pool_of(operands, config.seed) == pool]
    if not tuples:
        raise UserError(f"no operands are left for the {pool} problems", "raise largest_operand")
    return tuples


def _problems(seed: str, tuples: list[Operands], forms: tuple[Form, ...]) -> Iterator[Row]:
    source = random.Random(seed)
    while True:
        operands, form = source.choice(tuples), source.choice(forms)
        steps, answer = _solve(form, operands)
        if "=-" in "".join(steps):
            form = forms[0]
            steps, answer = _solve(form, operands)
        name, things = source.choice(NAMES), source.choice(THINGS)
        values = dict(zip("abcd", operands, strict=False))
        question = source.choice(form.wordings).format(name=name, things=things, **values)
        solution = f"{'; '.join(steps)}. The answer is \\boxed{{{answer}}}."
        yield {
            "question": question,
            "solution": solution,
            "answer": str(answer),
            "operands": list(operands),
            "text": f"Question: {question}\nAnswer: {solution}",
        }


def _solve(form: Form, operands: Operands) -> tuple[list[str], int]:
    """Return the steps of a problem as text, and the last one's result."""
    values, steps = dict(zip("abcd", operands, strict=False)), []
    for left, operator, right in form.steps:
        one, other = values[left], values[right]
        values["r"] = {"+": one + other, "-": one - other, "*": one * other}[operator]
        steps.append(f"{one}{operator}{other}={values['r']}")
    return steps, values["r"]


def _distinct(problems: Iterator[Row], count: int) -> list[Row]:
    found: dict[str, Row] = {}
    for _ in range(20 * count + 100):
        if len(found) == count:
            break
        problem = next(problems)
        found.setdefault(problem["question"], problem)
    if len(found) < count:
        raise UserError(f"only {len(found)} distinct problems of a pool exist, not {count}", "raise largest_operand")
    return list(found.values())


def pool_of(operands: Operands, seed: int) -> str:
    """Return the pool an operand tuple belongs to: a keyed hash, 12 % validation, 12 % test, the rest train."""
    percent = int.from_bytes(blake3(f"{seed} {operands}".encode()).digest(8), "little") % 100
    for pool, share in HELD_OUT_PERCENT.items():
        if percent < share:
            return pool
        percent -= share
    return "train"


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


def _worksheet(problems: list[Row]) -> Row:
    text = "\n\n\n".join(f"Question: {problem['question']}\nAnswer: {problem['answer']}" for problem in problems)
    return {"text": text, "operands": [problem["operands"] for problem in problems]}
