"""From a method to coefficients: one rule a method, over members ordered from the oldest to the newest.

A coefficient is a fraction of integers, so that the mean is a well-defined number whatever the order of the sum.
Rules whose fractions are irrational (cosine, square root) or need a denominator above `GRID` (long moving averages)
are rounded to multiples of 1 / GRID that still sum to 1: an error of at most 1e-6 in a coefficient, hundreds of times
below what bf16 resolves.

To add a method: write its rule here, add it to RULES, and name it in `ladle.soup.config`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from ladle.errors import UserError
from ladle.soup.config import SoupConfig

GRID = 2**20

Rule = Callable[[int, SoupConfig], list[Fraction]]


class Coefficients(NamedTuple):
    """numerators[j] / denominator is member j's share; the numerators sum to the denominator."""

    numerators: tuple[int, ...]
    denominator: int

    @property
    def used(self) -> list[int]:
        """The members that count, by position."""
        return [position for position, numerator in enumerate(self.numerators) if numerator]

    def as_text(self) -> list[str]:
        """Each member's share as a reduced fraction, `1/8`."""
        return [str(Fraction(numerator, self.denominator)) for numerator in self.numerators]


def make_coefficients(config: SoupConfig, num_members: int) -> Coefficients:
    """Return the coefficients of `config.method` for this many members.

    Raises:
        UserError: the method asks for more members, or other weights, than there are.
    """
    return to_coefficients(RULES[config.method](num_members, config))


def to_coefficients(shares: list[Fraction]) -> Coefficients:
    """Bring shares that sum to 1 to one denominator, at most GRID."""
    denominator = math.lcm(*(share.denominator for share in shares))
    if denominator <= GRID:
        return Coefficients(tuple(int(share * denominator) for share in shares), denominator)
    numerators = [int(share * GRID) for share in shares]
    by_loss = sorted(range(len(shares)), key=lambda j: (shares[j] * GRID - numerators[j], j), reverse=True)
    for position in by_loss[: GRID - sum(numerators)]:
        numerators[position] += 1
    return Coefficients(tuple(numerators), GRID)


def over(members: list[int], num_members: int) -> Coefficients:
    """Return the uniform average of some members, by position."""
    return Coefficients(tuple(int(position in members) for position in range(num_members)), len(members))


def _uniform(num_members: int, config: SoupConfig) -> list[Fraction]:
    return [Fraction(1, num_members)] * num_members


def _last_n(num_members: int, config: SoupConfig) -> list[Fraction]:
    last = config.last or num_members
    if last > num_members:
        raise UserError(f"soup.last is {last}, and there are {num_members} members", f"set last={num_members} or less")
    return [Fraction(0)] * (num_members - last) + [Fraction(1, last)] * last


def _weighted(num_members: int, config: SoupConfig) -> list[Fraction]:
    weights = [Fraction(str(weight)) for weight in config.weights or []]
    if len(weights) != num_members:
        raise UserError(
            f"soup.weights are {len(weights)} for {num_members} members", "give one number a member, in their order"
        )
    return [weight / sum(weights) for weight in weights]


def _linear(num_members: int, config: SoupConfig) -> list[Fraction]:
    """Member j of n, from 1, weighs j (weighted moving average, arXiv 2505.12082)."""
    total = num_members * (num_members + 1) // 2
    return [Fraction(position, total) for position in range(1, num_members + 1)]


def _ema(num_members: int, config: SoupConfig) -> list[Fraction]:
    """Fold from the oldest: average = (1 - alpha) average + alpha member."""
    alpha = Fraction(str(config.ema_alpha))
    kept = [(1 - alpha) ** (num_members - 1 - position) for position in range(num_members)]
    return [kept[0], *(alpha * share for share in kept[1:])]


def _wsm(decay: Callable[[Fraction], Fraction]) -> Rule:
    """Make a merge stand in for a learning-rate decay (WSM, arXiv 2507.17634).

    The update before member j counts decay(j / n) in the merge, falling from 1 to 0, which is so when member j weighs
    decay(j / n) - decay((j + 1) / n), members counted from 0.
    """

    def rule(num_members: int, config: SoupConfig) -> list[Fraction]:
        factors = [decay(Fraction(position, num_members)) for position in range(num_members)]
        return [here - after for here, after in zip(factors, [*factors[1:], Fraction(0)], strict=True)]

    return rule


def _cosine_decay(progress: Fraction) -> Fraction:
    return Fraction((1 + math.cos(math.pi * progress)) / 2)


def _inverse_sqrt_decay(progress: Fraction) -> Fraction:
    return 1 - Fraction(math.sqrt(progress))


RULES: dict[str, Rule] = {
    "uniform": _uniform,
    "last_n": _last_n,
    "weighted": _weighted,
    "linear": _linear,
    "ema": _ema,
    "wsm_linear": _wsm(lambda progress: 1 - progress),
    "wsm_cosine": _wsm(_cosine_decay),
    "wsm_inverse_sqrt": _wsm(_inverse_sqrt_decay),
}
