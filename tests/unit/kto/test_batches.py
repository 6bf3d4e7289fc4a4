from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ladle.kto.data import make_bin, plan_bins
from ladle.kto.loss import use_kto_forward
from tests.tiny_models import make_model, make_tokenizer
from tests.unit.kto.samples import PAD_ID, examples_of


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=80),
    st.integers(1, 2_000),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_sequence_is_in_one_bin_within_the_budget_and_bins_divide_by_processes(sizes, budget, processes, packed):
    lengths = np.array(sizes)
    bins = plan_bins(lengths, budget, processes, packed)
    assert sorted(index for one in bins for index in one) == list(range(len(sizes)))
    assert len(bins) % processes == 0
    for one in filter(None, bins):
        tokens = lengths[one].sum() if packed else len(one) * lengths[one].max()
        assert tokens <= budget or len(one) == 1


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_log_probabilities_are_those_of_each_completion_alone(shape, packed):
    examples = examples_of(9)
    model = make_model(shape, len(make_tokenizer())).eval()
    pairs = [(index, (index + 2) % 9) for index in range(9)]
    use_kto_forward(model)
    together = model(bin=make_bin(examples, pairs, range(9), PAD_ID, packed))
    for number, (prompt, completion) in enumerate(pairs):
        prompt_ids, completion_ids = examples.prompt(prompt), examples.completion(completion, prompt)
        ids = torch.tensor([[*prompt_ids.tolist(), *completion_ids.tolist()]])
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
        alone = sum(logp[len(prompt_ids) - 1 + i, token].item() for i, token in enumerate(completion_ids.tolist()))
        assert together[number].item() == pytest.approx(alone, abs=1e-4)
