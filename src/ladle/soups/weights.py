"""The members' shares in a soup: by a method, or by the loss on held-out data.

A method is a rule over members ordered from the oldest to the newest. Shares are fractions of integers. Rules whose
fractions are irrational (cosine, square root) or need a denominator above `GRID` (long moving averages) are rounded to
multiples of 1 / GRID that still sum to 1: an error of at most 1e-6 in a share, hundreds of times below what bf16
resolves. To add a method: write its rule here, add it to RULES, and name it in `ladle.soups.config`.

Greedy selection (arXiv 2203.05482): order the members by their own loss, best first; take each in turn into a uniform
average, and keep it only if the average's loss falls. The loss is that of a validation split, never of the benchmarks
that are reported: a soup chosen by a score cannot be compared by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from ladle.errors import UserError
from ladle.soups.config import SoupConfig

GRID = 2**20

Rule = Callable[[int, SoupConfig], list[Fraction]]
Score = Callable[[str, "Coefficients"], float]
"""The loss of an average, which is known by a name in logs and records."""


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


def _last_n(num_members: int, config: SoupConfig) -> list[Fraction]:
    last = config.last or num_members
    if last > num_members:
        raise UserError(f"soup.last is {last}, and there are {num_members} members", f"set last={num_members} or less")
    return [Fraction(0)] * (num_members - last) + [Fraction(1, last)] * last


def _weighted(num_members: int, config: SoupConfig) -> list[Fraction]:
    weights = [Fraction(str(weight)) for weight in config.weights or []]
    if len(weights) != num_members:
        raise UserError(f"soup.weights are {len(weights)} for {num_members} members", "give one number per member")
    return [weight / sum(weights) for weight in weights]


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


RULES: dict[str, Rule] = {
    "uniform": lambda n, config: [Fraction(1, n)] * n,
    "last_n": _last_n,
    "weighted": _weighted,
    # Member j of n, from 1, weighs j (weighted moving average, arXiv 2505.12082).
    "linear": lambda n, config: [Fraction(2 * j, n * (n + 1)) for j in range(1, n + 1)],
    "ema": _ema,
    "wsm_linear": _wsm(lambda t: 1 - t),
    "wsm_cosine": _wsm(lambda t: Fraction((1 + math.cos(math.pi * t)) / 2)),
    "wsm_inverse_sqrt": _wsm(lambda t: 1 - Fraction(math.sqrt(t))),
}


class Choice(NamedTuple):
    """A candidate, its shares and its loss."""

    name: str
    coefficients: Coefficients
    loss: float


def select(config: SoupConfig, names: Sequence[str], score: Score) -> Choice:
    """Return the candidate with the lowest loss, the first of equals.

    Args:
        config: `select` and `candidates`.
        names: the members', oldest first.
        score: called once for each candidate, and for greedy once for each average on the way.
    """
    labels = ["greedy"] if config.select == "greedy" else config.candidates
    candidates = (candidate for label in labels for candidate in _candidates(label, config, names, score))
    return min((Choice(name, shares, score(name, shares)) for name, shares in candidates), key=lambda c: c.loss)


def _candidates(
    label: str, config: SoupConfig, names: Sequence[str], score: Score
) -> Iterator[tuple[str, Coefficients]]:
    """Yield the averages that one entry of `candidates` tries, by name."""
    count = len(names)
    if label == "greedy":
        yield "greedy", _greedy(names, score)
        return
    tried: dict[str, dict[str, Any]] = {label: {"method": label}}
    if label == "last":
        tried = {"last": {"method": "last_n", "last": 1}}
    if label == "last_n":
        powers = [2**power for power in range(1, count.bit_length()) if 2**power < count]
        sizes = [config.last] if config.last else powers
        tried = {f"last_{size}": {"method": "last_n", "last": size} for size in sizes}
    for name, changes in tried.items():
        yield name, make_coefficients(config.model_copy(update=changes), count)


def _greedy(names: Sequence[str], score: Score) -> Coefficients:
    count = len(names)
    alone = {j: score(f"only {name}", over([j], count)) for j, name in enumerate(names)}
    first, *others = sorted(alone, key=lambda j: (alone[j], -j))
    kept, best = [first], alone[first]
    for position in others:
        trial = sorted([*kept, position])
        loss = score("greedy: " + " + ".join(names[j] for j in trial), over(trial, count))
        if loss < best:
            kept, best = trial, loss
    return over(kept, count)
