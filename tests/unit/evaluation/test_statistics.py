from __future__ import annotations

import itertools
import math
import random
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.evaluation.statistics import (
    bootstrap_interval,
    holm,
    items_to_detect,
    majority_answer,
    mcnemar_p_value,
    minimum_detectable_effect,
    pass_at_k,
    sign_flip_p_value,
    wilson_interval,
)


# 81 of 263: Newcombe 1998, table I, method 3. None of n: an upper end of z²/(n + z²), mirrored for all of n.
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775328), (5, 10, 0.2365931, 0.7634069), (10, 10, 0.7224672, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_against_known_values(correct, total, low, high):
    digits = 1e-6 if total == 10 else 5e-5
    assert wilson_interval(correct / total, total) == pytest.approx((low, high), abs=digits)


@given(st.integers(1, 3000), st.data())
def test_wilson_holds_the_accuracy_and_stays_in_bounds(total, data):
    accuracy = data.draw(st.integers(0, total)) / total
    low, high = wilson_interval(accuracy, total)
    assert 0 <= low <= accuracy <= high <= 1


def test_bootstrap_agrees_with_the_normal_approximation_and_its_seed():
    scores = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap_interval([scores], seed=3)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.003)
    assert bootstrap_interval([scores], seed=3) == (low, high)
    assert bootstrap_interval([scores], seed=4) != (low, high)


def test_bootstrap_of_several_benchmarks_weighs_them_equally():
    small, large = [1.0] * 15 + [0.0] * 15, [1.0] * 500 + [0.0] * 500
    low, high = bootstrap_interval([small, large], seed=0)
    half = 1.96 * math.sqrt(0.25 / 30 + 0.25 / 1000) / 2
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)


def test_benchmarks_of_equal_scores_are_resampled_independently():
    scores = [1.0] * 50 + [0.0] * 50
    alone = bootstrap_interval([scores], seed=0)
    both = bootstrap_interval([scores, scores], seed=0)
    assert both[1] - both[0] == pytest.approx((alone[1] - alone[0]) / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize(("correct", "samples", "k"), [(0, 5, 2), (2, 5, 1), (2, 5, 3), (5, 5, 5), (3, 8, 4)])
def test_pass_at_k_counts_the_subsets(correct, samples, k):
    is_correct = [True] * correct + [False] * (samples - correct)
    subsets = list(itertools.combinations(is_correct, k))
    assert pass_at_k(correct, samples, k) == pytest.approx(fmean(any(subset) for subset in subsets))


@pytest.mark.parametrize(
    ("answers", "index"),
    [(["1", "2", "2"], 1), (["1", "2"], 0), (["", "", "7"], 2), (["", ""], None), (["x = 1", "3", "x=1"], 0)],
)
def test_majority(answers, index):
    assert majority_answer(answers) == index


# By hand: 2 · 1/2^6, and 2 · (1 + 12 + 66)/2^12.
@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 6, 0.03125), (2, 10, 0.03857422), (10, 2, 0.03857422), (5, 5, 1.0)],
)
def test_mcnemar_against_known_values(first, second, p_value):
    assert mcnemar_p_value(first, second) == pytest.approx(p_value, abs=2e-5)


def test_mcnemar_of_many_items():
    assert mcnemar_p_value(1000, 1100) == pytest.approx(0.0307, abs=1e-3)


def test_random_signs_agree_with_mcnemar_where_both_apply():
    differences = [-1.0] * 5 + [1.0] * 15 + [0.0] * 80
    assert sign_flip_p_value(differences, seed=0) == pytest.approx(mcnemar_p_value(5, 15), abs=0.01)
    assert sign_flip_p_value([0.0, 0.0], seed=0) == 1.0


def test_an_effect_of_the_minimum_size_is_found_four_times_in_five():
    rng = random.Random(0)
    n, share_better, share_worse = 400, 0.14, 0.07
    found, effects = 0, []
    for _ in range(400):
        draws = [rng.random() for _ in range(n)]
        differences = [1.0 if d < share_better else -1.0 if d < share_better + share_worse else 0.0 for d in draws]
        effects.append(minimum_detectable_effect(differences))
        found += abs(fmean(differences)) > 1.96 * stdev(differences) / math.sqrt(n)
    true_effect = share_better - share_worse
    assert fmean(effects) == pytest.approx(0.064, abs=0.002)
    # The true effect of 7 points is a little above what 400 such items detect with 80 % power.
    assert true_effect > fmean(effects)
    assert 0.78 < found / 400 < 0.92


def test_items_to_detect_is_the_inverse_of_the_minimum_effect():
    differences = [1.0] * 20 + [-1.0] * 10 + [0.0] * 70
    effect = minimum_detectable_effect(differences)
    assert items_to_detect(differences, effect) in (100, 101)
    assert items_to_detect(differences, 0.0) is None
    assert minimum_detectable_effect([1.0]) is None
    assert minimum_detectable_effect([0.0, 0.0, 0.0]) is None  # nothing says how far such items may differ


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_the_stepwise_definition_rejects(p_values):
    """Step down from the smallest p: reject the i-th while it is at most α / (m - i + 1), then no more."""
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.5):
        is_rejected, going_on = {}, True
        for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            going_on = going_on and (len(p_values) - rank) * p_values[place] <= level
            is_rejected[place] = going_on
        assert {place: value <= level for place, value in enumerate(adjusted)} == is_rejected


def test_holm_against_a_published_example():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
