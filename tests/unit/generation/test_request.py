from __future__ import annotations

import pytest
from pydantic import ValidationError

from ladle.errors import UserError
from ladle.generation.request import SamplingConfig, make_requests, sample_seed


def test_seeds_differ_in_every_part_of_the_name():
    seeds = {
        sample_seed(run, benchmark, item, sample)
        for run in (0, 1)
        for benchmark in ("gsm8k", "gsm8", "k")
        for item in (0, 1, "0", "1")
        for sample in range(3)
    }
    assert len(seeds) == 2 * 3 * 4 * 3
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_seeds_are_the_same_on_every_machine():
    assert sample_seed(1, "gsm8k", 0, 0) == 378014799171421335


def test_a_prompt_has_a_request_for_each_sample_with_its_own_seed_and_the_stop_texts_of_both():
    sampling = SamplingConfig(stop=["\n\n"], top_k=3, samples=2, seed=5)
    first, second = make_requests(sampling, "gsm8k", 7, [1, 2], stop=["Q:"])
    assert (first.id, second.id, first.task) == ("gsm8k/7/0", "gsm8k/7/1", "gsm8k")
    assert (first.seed, second.seed) == (sample_seed(5, "gsm8k", 7, 0), sample_seed(5, "gsm8k", 7, 1))
    assert (first.stop, first.top_k, first.max_new_tokens) == (("Q:", "\n\n"), 3, 1024)


@pytest.mark.parametrize(
    ("prompt_ids", "message"),
    [([], "gsm8k/7 has no tokens"), ([1] * 9, "9 tokens, and the model takes 9.*longer context")],
)
def test_a_prompt_without_tokens_or_room_is_refused(prompt_ids, message):
    with pytest.raises(UserError, match=message):
        make_requests(SamplingConfig(), "gsm8k", 7, prompt_ids, positions=9)


def test_a_completion_ends_at_the_models_last_position():
    (request,) = make_requests(SamplingConfig(max_new_tokens=5), "gsm8k", 7, [1, 2], positions=6)
    assert (request.max_new_tokens, request.max_length) == (4, 6)


def test_a_stop_text_of_no_characters_is_refused():
    with pytest.raises(ValidationError, match="at least 1 character"):
        SamplingConfig(stop=["a", ""])


def test_execution_fields_are_no_part_of_the_identity():
    identity = SamplingConfig().identity()
    assert not {"batch_size", "backend", "endpoint"} & set(identity)
    assert {"temperature", "top_p", "top_k", "samples", "max_new_tokens", "seed", "stop"} == set(identity)
