from __future__ import annotations

import pytest

from ladle.errors import UserError
from ladle.generation.config import SamplingConfig
from ladle.generation.request import make_request, sample_seed


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


def test_a_prompt_adds_its_own_stop_texts():
    request = make_request(SamplingConfig(stop=["\n\n"], top_k=3), "a", [1, 2], seed=5, stop=["Q:"])
    assert request.stop == ("Q:", "\n\n")
    assert (request.top_k, request.seed, request.max_new_tokens) == (3, 5, 1024)


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="no tokens"):
        make_request(SamplingConfig(), "a", [], seed=0)


def test_execution_fields_are_no_part_of_the_identity():
    identity = SamplingConfig().identity()
    assert not {"batch_size", "backend", "endpoint"} & set(identity)
    assert {"temperature", "top_p", "top_k", "samples", "max_new_tokens", "seed", "stop"} == set(identity)
