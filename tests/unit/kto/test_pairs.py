from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.kto.pairs import mismatched_partners
from tests.unit.kto.samples import examples_of, plan_of

prompts = st.lists(st.integers(0, 12), min_size=2, max_size=200)


@given(prompts, st.integers(0, 2**32), st.integers(0, 100))
def test_nobody_is_paired_with_itself_and_everyone_serves_once(prompt_of, seed, epoch):
    partners = mismatched_partners(np.array(prompt_of), seed, epoch)
    assert sorted(partners) == list(range(len(prompt_of)))
    assert all(partner != index for index, partner in enumerate(partners))


@given(prompts, st.integers(0, 2**32))
def test_a_completion_of_ones_own_prompt_is_no_mismatch_unless_one_prompt_holds_more_than_half(prompt_of, seed):
    prompt_of = np.array(prompt_of)
    partners = mismatched_partners(prompt_of, seed, 0)
    if np.bincount(prompt_of).max() * 2 <= len(prompt_of):
        assert (prompt_of[partners] != prompt_of).all()


def test_each_epoch_and_each_seed_pairs_anew():
    prompt_of = np.arange(300)
    pairings = [mismatched_partners(prompt_of, seed, epoch) for seed in (1, 2) for epoch in (0, 1, 2)]
    same = [(a == b).mean() for i, a in enumerate(pairings) for b in pairings[:i]]
    assert max(same) < 0.05
    assert (mismatched_partners(prompt_of, 1, 2) == pairings[2]).all()


def test_over_many_epochs_an_example_meets_many_others():
    met = {int(mismatched_partners(np.arange(50), 7, epoch)[0]) for epoch in range(200)}
    assert len(met) > 40
    assert 0 not in met


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.3])
def test_kl_rows_are_the_asked_share_of_every_stretch_of_the_epochs_order(fraction):
    plan = plan_of(examples_of(90), epochs=2, kl_fraction=fraction)
    for epoch in (0, 1):
        chosen = plan.estimates_kl(epoch)[plan.used_rows(epoch)]
        assert chosen.sum() == pytest.approx(90 * fraction, abs=1)
        for start in range(0, 90, 10):
            assert abs(chosen[start : start + 10].sum() - 10 * fraction) <= 1


def test_rows_beyond_the_last_step_are_not_asked_for():
    plan = plan_of(examples_of(40), epochs=2, max_steps=7, rows_per_step=8)  # 5 steps an epoch: 2 in the second one
    assert len(plan.used_rows(0)) == 40
    assert len(plan.used_rows(1)) == 16
    assert plan.rows_of_pairing(1).tolist() == sorted(plan.used_rows(1).tolist())


def test_fixed_pairs_are_one_pairing_and_a_loss_without_z0_has_none():
    examples = examples_of(10)
    fixed = plan_of(examples, epochs=3, pairs_per_epoch=False)
    assert fixed.num_pairings == 1
    assert (fixed.partners(0) == fixed.partners(2)).all()
    assert plan_of(examples, epochs=3, kl_fraction=0.0).num_pairings == 0
