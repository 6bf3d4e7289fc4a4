from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladle.generation.sampling import draw, random_words

DRAWS = 40_000


def _shares(logits: torch.Tensor, **settings_) -> torch.Tensor:
    """Return how often each token is drawn, over many rows of the same logits."""
    word = random_words(3, DRAWS)
    logits_NV = logits.expand(DRAWS, -1).clone()
    arguments = {"temperature_N": torch.ones(DRAWS)} | {
        name: torch.full((DRAWS,), value) for name, value in settings_.items()
    }
    token, _ = draw(logits_NV, word, **arguments)
    return torch.bincount(token, minlength=len(logits)) / DRAWS


def _assert_close(shares: torch.Tensor, probabilities: torch.Tensor) -> None:
    # Five standard errors of each share: a right sampler fails one test in millions.
    error = 5 * (probabilities * (1 - probabilities) / DRAWS).sqrt() + 1e-9
    assert torch.all((shares - probabilities).abs() <= error), (shares, probabilities)


@pytest.mark.parametrize("vocab_size", [2, 7, 16, 300, 1000])
def test_tokens_are_drawn_by_their_probability(vocab_size):
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 2
    _assert_close(_shares(logits), logits.softmax(0))


def test_temperature_divides_the_logits():
    logits = torch.tensor([0.0, 1.0, 2.0])
    _assert_close(_shares(logits, temperature_N=0.5), (logits / 0.5).softmax(0))


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    _assert_close(_shares(logits, top_p_N=0.79), torch.tensor([0.625, 0.375, 0, 0]))
    _assert_close(_shares(logits, top_p_N=0.81), torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95)


def test_top_k_applies_before_top_p():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the two kept, the first alone is 4/7 of what is left: less than 0.6, so both stay.
    _assert_close(_shares(logits, top_k_N=2, top_p_N=0.6), torch.tensor([4, 3, 0, 0]) / 7)


def test_a_nucleus_larger_than_the_first_few_hundred_tokens():
    logits = torch.zeros(2000)
    shares = _shares(logits[:600], top_p_N=0.5)
    assert (shares > 0).sum() > 256  # ties all stay, so every token may be drawn


def test_rows_keep_their_own_settings():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0]).expand(4, -1).clone()
    token, _ = draw(
        logits,
        random_words(0, 4),
        temperature_N=torch.tensor([0.0, 1.0, 1.0, 1.0]),
        top_p_N=torch.tensor([1.0, 1e-6, 1.0, 1.0]),
        top_k_N=torch.tensor([0, 0, 1, 0]),
    )
    assert token[:3].tolist() == [0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 40), st.integers(2, 700))
def test_a_draw_depends_on_its_own_row_alone(seed, rows, vocab_size):
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed % 2**32))
    word = random_words(seed, rows)
    together, _ = draw(logits.clone(), word, torch.ones(rows), torch.full((rows,), 0.9))
    row = seed % rows
    alone, _ = draw(logits[row : row + 1].clone(), word[row : row + 1], torch.ones(1), torch.full((1,), 0.9))
    assert alone.item() == together[row].item()


def test_a_small_error_of_the_logits_moves_almost_no_token():
    # The coupling that the race is for: inverting the cumulative distribution moves about 300 tokens of these.
    logits = torch.randn(2000, 4096, generator=torch.Generator().manual_seed(1)) * 3
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)) * 1e-3
    word = random_words(9, 2000)
    before, _ = draw(logits.clone(), word, torch.ones(2000))
    after, _ = draw(logits + noise, word, torch.ones(2000))
    assert (before != after).sum() <= 12


def test_streams_are_fixed_and_differ():
    assert random_words(1, 3).tolist() == random_words(1, 5).tolist()[:3]
    words = torch.cat([random_words(seed, 50) for seed in range(50)])
    assert len(words.unique()) == 2500
    assert random_words(2**64 - 1, 1).dtype == torch.int64


def test_the_largest_logit_wins_where_the_others_vanish():
    logits = torch.full((1, 50), -math.inf)
    logits[0, 17] = -1000.0
    token, entropy = draw(logits, random_words(0, 1), torch.ones(1))
    assert (token.item(), entropy.item()) == (17, 0)  # type: ignore[union-attr]


def test_the_entropy_is_that_of_the_tempered_distribution_before_it_is_cut():
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(4)) * 5
    temperature = torch.tensor([1.0, 0.6, 2.0])
    _, entropy = draw(logits.clone(), random_words(0, 3), temperature, torch.full((3,), 0.5), torch.full((3,), 7))
    expected = torch.distributions.Categorical(logits=(logits / temperature[:, None]).double()).entropy()
    torch.testing.assert_close(entropy, expected.float(), rtol=1e-5, atol=1e-5)
    assert draw(logits, random_words(0, 3), torch.zeros(3))[1] is None
