from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladle.soups.config import SoupConfig
from ladle.soups.weights import GRID, RULES, make_coefficients, to_coefficients


def shares(num_members: int, **changes: object) -> list[Fraction]:
    coefficients = make_coefficients(SoupConfig.model_validate(changes), num_members)
    return [Fraction(numerator, coefficients.denominator) for numerator in coefficients.numerators]


@settings(deadline=None)
@given(
    method=st.sampled_from([name for name in RULES if name not in ("last_n", "weighted")]),
    num_members=st.integers(1, 40),
)
def test_shares_sum_to_one_and_none_is_negative(method: str, num_members: int) -> None:
    coefficients = make_coefficients(SoupConfig.model_validate({"method": method}), num_members)
    assert sum(coefficients.numerators) == coefficients.denominator <= GRID
    assert min(coefficients.numerators) >= 0


def test_uniform_is_the_seeds_average() -> None:
    assert shares(8) == [Fraction(1, 8)] * 8


def test_last_n_leaves_out_the_oldest() -> None:
    assert shares(5, method="last_n", last=2) == [0, 0, 0, Fraction(1, 2), Fraction(1, 2)]


def test_weights_are_taken_as_they_are_written() -> None:
    assert shares(3, method="weighted", weights=[0.1, 0.2, 0.7]) == [Fraction(1, 10), Fraction(1, 5), Fraction(7, 10)]
    assert shares(2, method="weighted", weights=[3, 1]) == [Fraction(3, 4), Fraction(1, 4)]


def test_linear_weighs_newer_members_more() -> None:
    assert shares(4, method="linear") == [Fraction(part, 10) for part in (1, 2, 3, 4)]


def test_ema_is_the_recursion_it_names() -> None:
    members, average = [5.0, 1.0, 2.0, 4.0], 5.0
    for member in members[1:]:
        average = 0.75 * average + 0.25 * member
    assert (
        sum(
            float(share) * member
            for share, member in zip(shares(4, method="ema", ema_alpha=0.25), members, strict=True)
        )
        == average
    )


def test_wsm_gives_every_update_its_decay() -> None:
    """Members are sums of updates, so update i counts the shares of all members from i on, which is the decay there."""
    decays = {
        "wsm_linear": lambda t: 1 - t,
        "wsm_cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
        "wsm_inverse_sqrt": lambda t: 1 - math.sqrt(t),
    }
    for method, decay in decays.items():
        found = shares(8, method=method)
        for update in range(8):
            assert float(sum(found[update:])) == pytest.approx(decay(update / 8), abs=8 / GRID)


def test_wsm_linear_is_the_uniform_average() -> None:
    assert shares(7, method="wsm_linear") == shares(7)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50))
def test_shares_of_any_size_come_to_the_grid(parts: list[int]) -> None:
    exact = [Fraction(part, sum(parts)) for part in parts]
    coefficients = to_coefficients(exact)
    assert sum(coefficients.numerators) == coefficients.denominator <= GRID
    for share, numerator in zip(exact, coefficients.numerators, strict=True):
        assert abs(share - Fraction(numerator, coefficients.denominator)) < Fraction(1, GRID)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"method": "weighted"}, "add `weights`"),
        ({"method": "weighted", "weights": [1, -1]}, "give numbers of 0 or more"),
        ({"method": "weighted", "weights": [0, 0]}, "not all 0"),
        ({"method": "weighted", "weights": [1, 1, 1]}, "one number per member"),
        ({"method": "last_n"}, "add `last`"),
        ({"method": "last_n", "last": 3}, "last=2 or less"),
    ],
)
def test_what_a_method_lacks_is_said(settings: dict[str, object], fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        shares(2, **settings)


def test_include_base_has_its_say() -> None:
    config = SoupConfig(members=["checkpoints", "base"])
    assert config.ordered_members == ["checkpoints", "base"]
    assert config.model_copy(update={"include_base": True}).ordered_members == ["base", "checkpoints"]
    assert config.model_copy(update={"include_base": False}).ordered_members == ["checkpoints"]
