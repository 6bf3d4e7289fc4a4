from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ladle.errors import UserError
from ladle.training.kto_data import make_examples, mismatched_partners, pad_sequences
from ladle.training.kto_loss import KtoWeights, completion_logps, kto_loss, reference_point
from tests.tiny_models import make_model, make_tokenizer


@given(st.integers(2, 200), st.integers(0, 2**32))
def test_nobody_is_paired_with_itself_and_everyone_serves_once(count, seed):
    partners = mismatched_partners(count, seed)
    assert sorted(partners) == list(range(count))
    assert all(partner != index for index, partner in enumerate(partners))


def test_the_loss_at_the_reference_is_half_the_weight():
    loss = kto_loss(torch.zeros(2), torch.tensor([True, False]), torch.tensor(0.0), KtoWeights(0.1, 2.0, 3.0))
    assert loss.tolist() == [1.0, 1.5]


def test_desirable_ratios_lower_the_loss_and_undesirable_ones_raise_it():
    ratio = torch.tensor([5.0, 5.0], requires_grad=True)
    kto_loss(ratio, torch.tensor([True, False]), torch.tensor(0.0), KtoWeights(0.1, 1.0, 1.0)).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad[0] < 0 < ratio.grad[1]


def test_z0_is_never_negative_and_carries_no_gradient():
    ratio = torch.tensor([-3.0, 1.0], requires_grad=True)
    assert reference_point(ratio).item() == 0.0
    assert not reference_point(ratio + 10).requires_grad


@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_logps_are_those_of_each_completion_alone(shape):
    model = make_model(shape).eval()
    prompts, completions = [[5, 6, 7], [8] * 9], [[10, 11], [12, 13, 14, 15]]
    batch = pad_sequences(prompts, completions, pad_id=1)
    together = completion_logps(model, batch["input_ids"], batch["attention_mask"], batch["is_completion"])
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        alone = sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion))
        assert together[row].item() == pytest.approx(alone, abs=1e-4)


def rows(count: int) -> list[dict]:
    return [
        {"prompt": f"Question: {i} plus 1?\nAnswer: ", "completion": f"{i}+1={i + 1}.", "label": i % 2 == 0}
        for i in range(count)
    ]


def test_completions_end_with_eos_and_long_prompts_are_counted():
    tokenizer = make_tokenizer()
    long = {"prompt": "plus " * 300, "completion": "x", "label": True}
    examples, counters = make_examples([*rows(4), long], tokenizer, max_length=64, seed=1)
    assert len(examples) == 4
    assert counters == {"dropped_long_prompts": 1, "cut_completions": 0}
    assert all(example.completion_ids[-1] == tokenizer.eos_token_id for example in examples)
    assert all(
        tokenizer.decode(e.prompt_ids + e.completion_ids[:-1]) == r["prompt"] + r["completion"]
        for e, r in zip(examples, rows(4), strict=True)
    )


def test_a_single_example_is_refused():
    with pytest.raises(UserError, match="at least two"):
        make_examples(rows(1), make_tokenizer(), max_length=64, seed=1)
