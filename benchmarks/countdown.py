"""Countdown problems, which a small model solves by search and luck: pass@64 stays well below 1.

A problem gives numbers and a target; the answer is a line for each operation, and uses every number once:

    Numbers: 3 8 7. Target: 31.
    3 * 8 = 24
    24 + 7 = 31

Problems differ by numbers and target. Which pool one belongs to is a hash of these, so that none that is
attempted or tested on was pretrained on, in any order of its numbers.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from blake3 import blake3

POOLS = {"test": 10, "validation": 5, "prompts": 30, "worked": 55}
"""Percent of all problems."""
LARGEST_RESULT = 99
LINE = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


class Problem(NamedTuple):
    """Numbers to combine, and what they must give."""

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """The text that a model completes."""
        return f"Numbers: {' '.join(map(str, self.numbers))}. Target: {self.target}.\n"

    @property
    def pool(self) -> str:
        """What the problem is for."""
        name = f"{sorted(self.numbers)} {self.target}"
        percent = int.from_bytes(blake3(name.encode()).digest(8), "little") % 100
        return next(pool for pool, end in zip(POOLS, accumulate(POOLS.values()), strict=True) if percent < end)


def operate(first: int, sign: str, second: int) -> int | None:
    """Return the result of one operation; None where it is not a whole number from 1 to `LARGEST_RESULT`."""
    if sign == "/":
        result = first // second if second and first % second == 0 else 0
    else:
        result = {"+": first + second, "-": first - second, "*": first * second}[sign]
    return result if 1 <= result <= LARGEST_RESULT else None


def draw(seed: str, count: int, largest: int) -> Iterator[tuple[Problem, str]]:
    """Yield problems of `count` numbers from 1 to `largest`, each with a solution, without end."""
    source = random.Random(seed)
    while True:
        numbers = [source.randint(1, largest) for _ in range(count)]
        pool, lines = list(numbers), list[str]()
        while len(pool) > 1:
            first, second = (pool.pop(source.randrange(len(pool))) for _ in range(2))
            sign = source.choice("+-*/")
            result = operate(first, sign, second)
            if result is None:
                break
            pool.append(result)
            lines.append(f"{first} {sign} {second} = {result}")
        else:
            yield Problem(tuple(numbers), pool[0]), "\n".join(lines)


def facts(seed: str, largest: int, lines: int) -> Iterator[str]:
    """Yield lists of single operations, of the sizes that occur in solutions, without end."""
    source = random.Random(seed)
    while True:
        found = list[str]()
        while len(found) < lines:
            first, second = source.sample([source.randint(1, LARGEST_RESULT), source.randint(1, largest)], 2)
            sign = source.choice("+-*/")
            if (result := operate(first, sign, second)) is not None:
                found.append(f"{first} {sign} {second} = {result}")
        yield "\n".join(found)


def distinct(seed: str, number: int, count: int, largest: int, pool: str) -> list[Problem]:
    """Return so many problems of a pool that differ in numbers or target."""
    found: dict[tuple[tuple[int, ...], int], Problem] = {}
    for problem, _ in draw(seed, count, largest):
        if problem.pool == pool:
            found.setdefault((tuple(sorted(problem.numbers)), problem.target), problem)
        if len(found) == number:
            break
    return list(found.values())


def derivation(problem: Problem, completion: str) -> str | None:
    """Return the operations of a right completion, the two sides of + and * in order; None where it is wrong."""
    pool, steps = Counter(problem.numbers), list[str]()
    for line in completion.strip().splitlines():
        if not (found := LINE.fullmatch(line.strip())):
            return None
        first, sign, second, said = int(found[1]), found[2], int(found[3]), int(found[4])
        for number in (first, second):
            pool[number] -= 1
        if min(pool.values()) < 0 or operate(first, sign, second) != said:
            return None
        pool[said] += 1
        sides = sorted((first, second)) if sign in "+*" else (first, second)
        steps.append(f"{sides[0]}{sign}{sides[1]}")
    return ";".join(steps) if +pool == Counter([problem.target]) else None
