"""Unique pairs of gold answers and answers as models write them, in a stated mix of types; half of them are right."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

MIX = {
    "integer": 40,
    "integer with words, units or separators": 12,
    "decimal": 12,
    "fraction": 16,
    "percent": 3,
    "root or multiple of pi": 9,
    "polynomial": 4,
    "tuple, interval, list or equation": 4,
}
"""Pairs of each type in a hundred: roughly what the answers of gsm8k, math500 and olympiadbench are together."""


class LabelledPair(NamedTuple):
    """A gold answer, an answer, and whether they are the same by construction."""

    gold: str
    answer: str
    is_equal: bool


def make_pairs(count: int, seed: int = 0) -> list[LabelledPair]:
    """Return so many different pairs."""
    rng = random.Random(seed)
    makers = [_MAKERS[kind] for kind, share in MIX.items() for _ in range(share)]
    pairs: dict[tuple[str, str], LabelledPair] = {}
    while len(pairs) < count:
        pair = rng.choice(makers)(rng, rng.random() < 0.5)
        pairs[pair.gold, pair.answer] = pair
    return list(pairs.values())


def _integer(rng: random.Random, equal: bool) -> LabelledPair:
    value = int(10 ** rng.uniform(0, 6)) * rng.choice((1, 1, 1, -1))
    other = value if equal else value + rng.choice((1, -1, 10, 2, value or 7))
    return LabelledPair(
        str(value), rng.choice(("{}", "{}", "${}$", "{}.", "\\boxed{{{}}}", "{}.0")).format(other), equal
    )


def _dressed(rng: random.Random, equal: bool) -> LabelledPair:
    value = int(10 ** rng.uniform(1, 6))
    other = value if equal else value + rng.choice((1, 5, 100))
    form = rng.choice(
        (
            "{:,}",
            "\\${:,}",
            "{:,} dollars",
            "{} \\text{{ cm}}",
            "{} eggs",
            "x = {}",
            "{}^\\circ",
            "{} \\text{{ minutes}}",
        )
    )
    return LabelledPair(str(value), form.format(other).replace(",", rng.choice((",", "{,}", ",\\!"))), equal)


def _decimal(rng: random.Random, equal: bool) -> LabelledPair:
    places = rng.randint(1, 3)
    value = rng.randint(1, 9999)
    other = value if equal else value + rng.choice((1, 7, 30))
    gold, answer = f"{value / 10**places:.{places}f}", f"{other / 10**places:.{places}f}"
    if rng.random() < 0.3:
        power = rng.randint(3, 20)
        return LabelledPair(f"{gold}e{power}", f"{answer} \\times 10^{{{power}}}", equal)
    return LabelledPair(gold, rng.choice(("{}", "${}$", "{}0", "{} \\text{{ km}}")).format(answer), equal)


def _fraction(rng: random.Random, equal: bool) -> LabelledPair:
    above, below = rng.randint(1, 97), rng.randint(2, 60)
    times = rng.choice((1, 1, 2, 3)) if equal else 1
    other = above * times if equal else above + rng.choice((1, 2))
    form = rng.choice(("\\frac{{{}}}{{{}}}", "\\dfrac{{{}}}{{{}}}", "{}/{}", "$\\frac{{{}}}{{{}}}$"))
    return LabelledPair(f"\\frac{{{above}}}{{{below}}}", form.format(other, below * times), equal)


def _percent(rng: random.Random, equal: bool) -> LabelledPair:
    value = rng.randint(1, 9999)
    other = value if equal else value + 3
    return LabelledPair(f"{value / 10}\\%", rng.choice(("{}%", "{}", "{}\\%", "{} percent")).format(other / 10), equal)


def _root(rng: random.Random, equal: bool) -> LabelledPair:
    factor, inside, added = rng.randint(2, 30), rng.choice((2, 3, 5, 6, 7, 10, 11, 13)), rng.randint(1, 60)
    other = factor if equal else factor + 1
    if rng.random() < 0.3:
        return LabelledPair(f"\\frac{{{factor}\\pi}}{{{added}}}", f"{other}\\pi/{added}", equal)
    gold = f"{added}+{factor}\\sqrt{{{inside}}}"
    answers = (f"{other}\\sqrt{{{inside}}}+{added}", f"{added} + \\sqrt{{{other * other * inside}}}")
    return LabelledPair(gold, rng.choice(answers), equal)


def _polynomial(rng: random.Random, equal: bool) -> LabelledPair:
    one, other = rng.randint(1, 40), rng.randint(1, 40)
    letter = rng.choice("xnat")
    constant = one * other if equal else one * other + 1
    return LabelledPair(f"({letter}+{one})({letter}-{other})", f"{letter}^2+{one - other}{letter}-{constant}", equal)


def _structure(rng: random.Random, equal: bool) -> LabelledPair:
    one, other = sorted(rng.sample(range(-60, 60), 2))
    shown = other if equal else other + 1
    forms = (
        ("({0},{1})", "({0}, {2})"),
        ("[{0},{1}]", "\\left[{0},{2}\\right]"),
        ("{0},{1}", "{2} \\text{{ and }} {0}"),
        ("y={0}x+{1}", "y = {2} + {0}x"),
        ("\\{{{0},{1}\\}}", "\\{{{2}, {0}\\}}"),
    )
    gold, answer = rng.choice(forms)
    return LabelledPair(gold.format(one, other), answer.format(one, other, shown), equal)


_MAKERS: dict[str, Callable[[random.Random, bool], LabelledPair]] = dict(
    zip(MIX, (_integer, _dressed, _decimal, _fraction, _percent, _root, _polynomial, _structure), strict=True)
)
