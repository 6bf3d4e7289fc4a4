"""Examples from rows, their labels' weights, and the bins that forward passes take them in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ladle.errors import UserError
from ladle.kto.config import KtoConfig
from ladle.kto.data import KtoExamples, make_bin, plan_bins, tokenize_examples
from ladle.kto.loss import use_kto_forward
from ladle.kto.train import choose_weights
from tests.tiny_models import make_model, make_tokenizer
from tests.unit.kto.samples import PAD_ID, examples_of, rows


def test_completions_end_with_eos_and_long_prompts_are_counted():
    tokenizer = make_tokenizer()
    long = {"prompt": "plus " * 300, "completion": "x", "label": True}
    examples, counters = tokenize_examples([*rows(4), long], tokenizer, max_length=64)
    assert counters == {"examples": 4, "dropped_long_prompts": 1, "cut_completions": 0}
    for index, row in enumerate(rows(4)):
        completion = examples.completion(index, index)
        assert completion[-1] == tokenizer.eos_token_id
        assert tokenizer.decode([*examples.prompt(index), *completion[:-1]]) == row["prompt"] + row["completion"]


def test_a_completion_is_cut_to_what_its_prompt_leaves_and_never_to_nothing():
    examples, counters = tokenize_examples(rows(8), make_tokenizer(), max_length=18)
    assert counters["cut_completions"] > 0
    for prompt in range(len(examples)):
        for completion in range(len(examples)):
            size = len(examples.completion(completion, prompt))
            assert 1 <= size <= 18 - len(examples.prompt(prompt))
            assert examples.lengths(np.array([prompt]), np.array([completion])) == len(examples.prompt(prompt)) + size


def test_examples_come_back_from_disk(tmp_path):
    examples = examples_of(5)
    examples.save(tmp_path)
    again = KtoExamples.load(tmp_path, examples.max_length)
    assert all((again.completion(i, j) == examples.completion(i, j)).all() for i in range(5) for j in range(5))


def test_equal_prompts_are_one_prompt():
    same = [{"prompt": "Question: 1?", "completion": str(i), "label": True} for i in range(3)]
    examples, _ = tokenize_examples([*same, *rows(1)], make_tokenizer(), 64)
    assert examples.prompt_of.tolist() == [0, 0, 0, 1]


def test_a_single_example_is_refused():
    with pytest.raises(UserError, match="at least two examples and has 1"):
        tokenize_examples(rows(1), make_tokenizer(), max_length=64)


CONVERSATION = {
    "prompt": [{"role": "user", "content": "1 plus 1?"}],
    "completion": [{"role": "assistant", "content": "2"}],
    "label": True,
}


def test_a_conversation_without_a_template_is_written_as_chatml():
    tokenizer = make_tokenizer()
    examples, _ = tokenize_examples([CONVERSATION, CONVERSATION], tokenizer, 128)
    assert tokenizer.decode(examples.prompt(0)) == "<|im_start|>user\n1 plus 1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(examples.completion(0, 0)).startswith("2<|im_end|>")
    assert tokenizer.chat_template is not None


def test_a_template_that_does_not_separate_prompt_and_completion_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="cannot be separated"):
        tokenize_examples([CONVERSATION, CONVERSATION], tokenizer, 128)


LABELS = np.array([True] * 30 + [False] * 10)


def test_auto_weight_makes_both_labels_weigh_the_same():
    assert choose_weights(KtoConfig(desirable_weight="auto", undesirable_weight=1.5), LABELS).desirable == 0.5


def test_weights_outside_the_papers_range_are_named(caplog):
    choose_weights(KtoConfig(), LABELS)
    assert "λ_D n_D / λ_U n_U is 3, outside the paper's [1, 4/3]: a desirable_weight in [0.333, 0.444]" in caplog.text


def test_one_label_is_refused_unless_allowed(caplog):
    with pytest.raises(UserError, match="every example is labelled True"):
        choose_weights(KtoConfig(), LABELS[:30])
    choose_weights(KtoConfig(allow_single_label=True), LABELS[:30])
    assert "z0 will cancel the reward" in caplog.text


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
